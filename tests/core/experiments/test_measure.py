"""Samples, scores and cells, on a world of dots whose figures are known."""

import json
from types import SimpleNamespace

import pytest
import torch
from tests.core.experiments.dots import Dots
from torch import nn

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.experiments.cells import Arm, Table
from selfnpo_core.experiments.measure import (
    against,
    compare_arms,
    compare_prompts,
    describe,
    distance,
    floor,
    judge,
    plain,
    sample,
    sweep,
)
from selfnpo_core.worlds.assets import refuse_ragged
from selfnpo_core.worlds.judge import Rated, change_one_attribute, known_pairs
from selfnpo_core.worlds.oracle import augment
from selfnpo_core.worlds.world import Task

WORLD = Dots()


class Painter:
    """Puts the dot where it is asked to with a chance that guidance raises; two rows of its network a dot."""

    def __init__(self):
        self.denoiser, self.scheduler = nn.Identity(), SimpleNamespace()

    def __call__(self, noise, labels, scale):
        self.denoiser(torch.cat([noise, noise]))
        right = noise[:, 0] < scale - 2
        data = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
        for row, (side, good) in enumerate(zip(labels[:, 0].tolist(), right.tolist(), strict=True)):
            half = side if good else 1 - side
            data[row, :, 2:6, 4 * half : 4 * half + 4] = 220
        return data


def table(folder, count=200):
    task = Task.draw(WORLD, count, 5)
    return Table(world=WORLD, folder=folder / "cells", scores=folder / "scores", task=task, steps=2, batch=16)


def test_tasks_of_other_seeds_share_nothing():
    one, other = Task.draw(WORLD, 50, 2), Task.draw(WORLD, 50, 3)
    assert not set(one.seeds) & set(other.seeds)
    assert one.prompts != other.prompts


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


def test_cells_are_computed_once_and_paired_with_plain_guidance(tmp_path):
    painter = Painter()
    arms = [
        Arm(name="cfg", attach=plain, note={}, against=(), base=True),
        Arm(name="npo-s1", attach=plain, note={"training_seed": 1}),
    ]
    cells = [table(tmp_path).cell(painter, arm, 3.0) for arm in arms]
    assert cells[0]["against_cfg"] is None
    assert cells[1]["against_cfg"]["win_rate"][0] == 0.5  # the same samples
    assert [cell["rows_per_dot"] for cell in cells] == [2.0, 2.0]
    assert table(tmp_path).kept("cfg", 3.0).shape == (64, 3, 8, 8)
    kept = (tmp_path / "cells" / "cfg-g3.json").read_bytes()

    def refuse(_):
        raise AssertionError("a cell on disk was computed again")

    again = table(tmp_path).cell(painter, Arm(name="cfg", attach=refuse, note={}, against=(), base=True), 3.0)
    assert again == cells[0] == json.loads(kept)
    for count in (100, 300):
        with pytest.raises(InputError, match=f"made with 200 samples of 2 steps, not {count} of 2"):
            table(tmp_path, count).cell(painter, arms[0], 3.0)
    with pytest.raises(InputError, match="draw the arm cfg at scale 5 first"):
        table(tmp_path).cell(painter, Arm(name="npo-s1", attach=refuse, note={}), 5.0)
    (tmp_path / "scores" / "cfg-g3.safetensors").unlink()
    with pytest.raises(AssertionError, match="again"):  # without scores nothing could be paired with it
        table(tmp_path).cell(painter, Arm(name="cfg", attach=refuse, note={}, against=(), base=True), 3.0)


def test_a_ragged_model_is_refused():
    refuse_ragged(0.85, 3.0, least=0.8, most=8.0)
    with pytest.raises(RunError, match=r"joint prompt accuracy 0\.790"):
        refuse_ragged(0.79, 3.0, least=0.8, most=8.0)
    with pytest.raises(RunError, match="reconstruction distance"):
        refuse_ragged(0.85, 8.1, least=0.8, most=8.0)


def test_known_pairs_are_ordered_as_they_say():
    g = torch.Generator().manual_seed(6)
    rated = Rated(
        data=torch.zeros(200, 0),
        asked=torch.zeros(200, 7),
        damage=torch.rand(200, generator=g),
        wrong=torch.rand(200, generator=g) < 0.5,
    )
    better, worse, by_damage = known_pairs(rated, 5000, g)
    assert by_damage.any()
    assert (~by_damage).any()
    assert (rated.damage[worse] > rated.damage[better])[by_damage].all()
    assert not rated.wrong[better].any()
    assert torch.equal(rated.wrong[worse], ~by_damage)


def test_one_named_attribute_is_changed():
    g = torch.Generator().manual_seed(7)
    labels = torch.stack([torch.randint(n, (300,), generator=g) for n in (3, 5, 2)], dim=1)
    labels[::3, 1] = -1
    changed = change_one_attribute(labels, (3, 5, 2), g, first=1)
    assert ((labels != changed).sum(dim=1) == 1).all()
    assert torch.equal(labels[:, 0], changed[:, 0])
    assert ((labels < 0) == (changed < 0)).all()
    assert (changed < torch.tensor([3, 5, 2])).all()


def test_augmentation_leaves_what_is_to_be_seen():
    data = torch.rand(8, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = augment(data, torch.Generator().manual_seed(1))
    assert seen.shape == data.shape
    assert 0 < (seen - data).abs().mean() < 0.3
