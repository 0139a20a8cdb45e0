"""What a run of the demo is said to hold, stage by stage, against what each stage is seen to hold."""

from pathlib import Path

import pytest
from tests.stages import seen

from selfnpo_core.training import build_recipe, dry_run
from selfnpo_image.backbone import ImageBackbone
from selfnpo_image.families import find_base
from selfnpo_image.sd15 import SD15

PROMPTS = ["a red fox", "a blue boat", "a car", "a tree"]
SMALL = {
    "steps": 9,
    "batch_size": 8,
    "pool_size": 24,
    "grid_steps": 3,
    "rank": 8,
    "trackers": [],
    "device": "cpu",
    "sample_every": 2,
    "samples_cache": None,
}
FINISHED = {"rollout": "samples", "loss": "denoising", "samples": 8}


def demo() -> ImageBackbone:
    return SD15(find_base("demo"), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {**FINISHED, "train": "full", "mixed_precision": "bf16"}])
def test_each_stage_holds_what_it_is_said_to_hold(changes: dict[str, object], tmp_path: Path) -> None:
    recipe = build_recipe({**SMALL, **changes})
    plan = dry_run(demo(), recipe, PROMPTS)
    held = seen(demo, recipe, PROMPTS, tmp_path)
    assert {stage.name for stage in plan.stages} == set(held)
    for stage in plan.stages:
        assert stage.device_bytes == pytest.approx(held[stage.name], rel=0.15), stage.name


def test_the_estimate_names_the_largest_stage() -> None:
    plan = dry_run(demo(), build_recipe({**SMALL, **FINISHED}), PROMPTS)
    names = ["encode prompts", "draw finished samples", "update", "draw sample grids", "save"]
    assert [stage.name for stage in plan.stages] == names
    assert plan.device_bytes == next(stage.device_bytes for stage in plan.stages if stage.name == "update")
    assert plan.largest.device_bytes == max(stage.device_bytes for stage in plan.stages)
    lines = str(plan).splitlines()
    assert lines[-1].startswith(f"  the most: {plan.largest.name}, ")
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in names)
    without = dry_run(demo(), build_recipe({**SMALL, "sample_every": 0}), PROMPTS)
    assert [stage.name for stage in without.stages] == ["encode prompts", "warm the pool up", "update", "save"]
