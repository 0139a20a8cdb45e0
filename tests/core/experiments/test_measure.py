"""Samples and their scores, on a world of dots whose figures are known."""

import pytest
import torch
from tests.core.experiments.dots import Dots, Painter

from selfnpo_core.evaluation import Moments
from selfnpo_core.experiments.measure import (
    Scores,
    against,
    compare_arms,
    compare_prompts,
    describe,
    distance,
    excess_ratio,
    floor,
    judge,
    motion_of,
    motion_ratio,
    resampled,
    sample,
    sweep,
)
from selfnpo_core.worlds.world import Judges, Task

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


def test_what_is_above_real_samples_is_told_as_a_ratio():
    real = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    world = Dots()
    world.judges = Judges(oracle=None, preference=None, reference=Moments.of(real[:200]))

    def off(by):
        return Scores(features=real[200:] + torch.tensor([by, 0.0]), right=torch.ones(200, 1), preference=real[200:, 0])

    again = resampled(world, real[200:])
    assert again[0] == distance(world, real[200:])
    ratio = excess_ratio(world, off(1.0), off(2.0), again)
    mean = real[200:].mean(0) - real[:200].mean(0)
    expected = ((1 + mean[0]) ** 2 - mean[0] ** 2) / ((2 + mean[0]) ** 2 - mean[0] ** 2)
    assert ratio.value == pytest.approx(expected.item(), rel=1e-4)
    assert 0.15 < ratio.low < ratio.value < ratio.high < 0.4
    assert excess_ratio(world, off(2.0), off(2.0), again).value == 1


def test_how_much_moves():
    still = torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8)
    clips = still.clone()
    clips[1, :, 1::2] = 51  # a fifth, there and back
    assert motion_of(clips).tolist() == pytest.approx([0, 0.2])
    assert motion_of(clips[:, :, 0]) is None

    def scores(motion):
        return Scores(features=still, right=still, preference=still, motion=motion)

    moved = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 1
    assert motion_ratio(scores(0.5 * moved), scores(moved)).value == pytest.approx(0.5)
    assert motion_ratio(scores(None), scores(None)) is None


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
