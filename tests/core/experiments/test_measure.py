"""Samples and their scores, on a world of dots whose figures are known."""

import pytest
import torch
from tests.core.experiments.dots import Dots, Painter

from selfnpo_core.experiments.measure import (
    against,
    compare_arms,
    compare_prompts,
    describe,
    distance,
    floor,
    judge,
    sample,
    sweep,
)
from selfnpo_core.worlds.world import Task

WORLD = Dots()


def test_real_samples_are_right_and_near():
    data, labels = WORLD.draw_real(300, torch.Generator().manual_seed(4))
    scores = judge(WORLD, data, labels)
    assert scores.accurate.all()
    assert distance(WORLD, scores.features) < 1e-3
    assert floor(WORLD, 600) < 1e-3
    wrong = judge(WORLD, data, 1 - labels)
    assert not wrong.accurate.any()
    assert (scores.preference > wrong.preference).all()


def test_figures_of_an_arm_and_of_a_pair():
    task, painter = Task.draw(WORLD, 300, 5), Painter()
    drawn = {scale: sample(WORLD, painter, task, guidance_scale=scale, steps=2) for scale in (2.0, 9.0)}
    assert drawn[2.0].forward_rows == 600
    half, all_right = (judge(WORLD, drawn[scale].data, task.labels) for scale in (2.0, 9.0))
    assert describe(WORLD, all_right)["accuracy"][0] == 1.0
    assert describe(WORLD, half)["by_attribute"]["side"] == pytest.approx(0.5, abs=0.1)
    change = against(WORLD, all_right, half)
    assert change["accuracy_change"][0] == pytest.approx(1 - half.accurate.float().mean().item())
    assert change["accuracy_change"][1] > 0
    assert change["win_rate"][0] == pytest.approx(1 - half.accurate.float().mean().item() / 2)  # a tie is half
    assert change["fd_change"][0] == pytest.approx(distance(WORLD, all_right.features) - distance(WORLD, half.features))
    rows = sweep(WORLD, painter, scales=(2.0, 9.0), count=50, seed=1, steps=2)
    assert rows["9"]["accuracy"] == 1.0


def test_few_samples_have_no_distance():
    task, painter = Task.draw(WORLD, 150, 5), Painter()
    arms = [sample(WORLD, painter, task, guidance_scale=scale, steps=2).data for scale in (2.0, 9.0)]
    assert set(compare_arms(WORLD, task.labels, *arms)["change"]) == {"fd_change", "accuracy_change", "win_rate"}
    few = compare_arms(WORLD, task.labels[:100], *(data[:100] for data in arms))
    assert set(few["change"]) == {"win_rate"}
    assert few["with"]["accuracy"][0] == 1.0


def test_prompts_that_are_no_captions_are_left_out():
    data, labels = WORLD.draw_real(6, torch.Generator().manual_seed(8))
    prompts = WORLD.draw_captions(labels, torch.Generator())
    figures = compare_prompts(WORLD, [*prompts, "a red fox"], [*data, data[0]], [*data, data[0]])
    assert figures["judged"] == 6
    assert figures["with"]["accuracy"][0] == 1.0
    assert compare_prompts(WORLD, ["a red fox"], data[:1], data[:1])["judged"] == 0
    large = data.repeat(1, 1, 2, 2)
    assert "8×8" in compare_prompts(WORLD, prompts, large, large)["note"]
