"""Benchmarks on little, and which parts of long clips are compared."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from selfnpo_video.long import default_overlap, window_starts


@pytest.fixture
def benchmark(monkeypatch):
    """As a script finds its own modules."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    import benchmark

    return benchmark


@pytest.mark.usefixtures("benchmark")
def test_the_parts_beside_the_seams_have_them_in_the_middle():
    from benchmarks.long import SEAMS, WITHIN, parts_of

    starts = window_starts(9, 3, default_overlap(3))
    parts = parts_of(33, 3)
    assert len(parts[SEAMS]) == len(starts) - 1
    for first, (before, after) in zip(parts[SEAMS], pairwise(starts), strict=True):
        shared = [4 * latent - k for latent in range(after, before + 3) for k in range(4)]  # frames of the overlap
        assert abs((first + 4) - sum(shared) / len(shared)) <= 0.5
    for first, start in zip(parts[WITHIN], starts, strict=True):
        assert first == max(0, min(4 * start, 24))
    assert all(0 <= first <= 33 - 9 for firsts in parts.values() for first in firsts)


@pytest.mark.slow
def test_every_negative_mode_is_timed_and_weighed(benchmark, tmp_path):
    words = ["modes", "--output", str(tmp_path / "modes.json"), "--blocks", "32,64,64,64", "--side", "64"]
    benchmark.main([*words, "--steps", "1", "--repeats", "2", "--rank", "2"], standalone_mode=False)
    found = json.loads((tmp_path / "modes.json").read_text())["modes"]
    held = {mode: found[mode]["bytes held"] for mode in found}
    assert held["adapters"] < held["lowrank"] < held["int8"] < held["bf16"] <= held["swap"]
    assert held["bf16"] == pytest.approx(2 * held["int8"], rel=0.1)
    assert all(
        row["time, in plain guidance's before and after"] > 0 and len(row["each call's"]) == 2 for row in found.values()
    )


def test_a_lora_of_higher_rank_loses_less(benchmark, tmp_path):
    from selfnpo_core.training import build_recipe, train
    from selfnpo_image.families import find_base
    from selfnpo_image.sd15 import SD15

    recipe = build_recipe(
        {"train": "full", "steps": 1, "batch_size": 2, "pool_size": 4, "grid_steps": 3, "device": "cpu"}
    )
    train(
        SD15(find_base("demo"), device="cpu"),
        recipe,
        ["a small cat on a blue ground"],
        tmp_path / "run",
        progress=False,
    )
    words = ["ranks", "--npo", str(tmp_path / "run"), "--output", str(tmp_path / "ranks.json"), "--ranks", "2,32"]
    benchmark.main(words, standalone_mode=False)
    low, high = json.loads((tmp_path / "ranks.json").read_text())["ranks"]
    for what in ("matrices", "all weights", "effect"):
        assert 0 < high[what] < low[what]


def test_a_recipe_is_seen_to_take_what_was_estimated(benchmark, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("model: demo\nbatch_size: 4\ngradient_checkpointing: true\ndevice: cpu\n")
    words = ["recipe", str(recipe), "--family", "image", "--updates", "1", "--output", str(tmp_path / "tiny.json")]
    benchmark.main(words, standalone_mode=False)
    found = json.loads((tmp_path / "tiny.json").read_text())
    assert found["recipe"]["batch_size"] == 4
    assert found["estimated"] == sum(found["estimated bytes"].values())
    assert found["seen, of the estimate"] == pytest.approx(1, abs=0.15)
    assert found["seconds an update"] > 0
