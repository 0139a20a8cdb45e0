"""What a run on clips is said to hold, stage by stage, against what each stage is seen to hold."""

from pathlib import Path

import pytest
import torch
from tests.stages import seen

from selfnpo_core.errors import InputError
from selfnpo_core.training import DryRun, build_recipe, dry_run, estimate
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.families import find_base

PROMPTS = ["a red circle moves left", "a blue square grows", "a ring", "a star"]
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
GIB = 1 << 30
T5_XXL = 4_762_310_656
"""Parameters of T5 1.1 XXL's encoder."""


def demo() -> CogVideoX:
    return CogVideoX(find_base("demo"), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {**FINISHED, "train": "full", "mixed_precision": "bf16"}])
def test_each_stage_holds_what_it_is_said_to_hold(changes: dict[str, object], tmp_path: Path) -> None:
    recipe = build_recipe({**SMALL, **changes})
    plan = dry_run(demo(), recipe, PROMPTS)
    held = seen(demo, recipe, PROMPTS, tmp_path)
    assert {stage.name for stage in plan.stages} == set(held)
    for stage in plan.stages:
        assert stage.device_bytes == pytest.approx(held[stage.name], rel=0.15), stage.name


def stages(plan: DryRun) -> dict[str, int]:
    return {stage.name: stage.device_bytes for stage in plan.stages}


@pytest.fixture(scope="module")
def real() -> dict[str, DryRun]:
    """CogVideoX-2b's weights, of clips that are small, so that simulating them takes seconds."""
    base, clip = find_base("cogvideox-2b"), {"frames": 9, "height": 64, "width": 64}
    common = {**SMALL, **FINISHED, "device": "cuda", "batch_size": 1, "mixed_precision": "bf16", **clip}
    found = {}
    for train, dtype in (("lora", torch.bfloat16), ("full", torch.float32)):
        sketch = CogVideoX.sketch(base, **clip, dtype=dtype)
        found[train] = dry_run(sketch, build_recipe({**common, "train": train}), PROMPTS)
    return found


@pytest.mark.slow
def test_t5_is_counted_in_16_bits_whatever_is_trained(real: dict[str, DryRun]) -> None:
    for plan in real.values():
        assert stages(plan)["encode prompts"] == pytest.approx(2 * T5_XXL, rel=0.02)
    assert real["lora"].largest.name == "encode prompts"
    assert "the most: encode prompts, 8.9 GiB" in str(real["lora"])
    assert real["full"].largest.name != "encode prompts"


@pytest.mark.slow
def test_a_grid_is_drawn_beside_what_is_trained_and_decoded_in_place_of_the_base(real: dict[str, DryRun]) -> None:
    parts = {part.name: part.bytes for part in real["full"].memory}
    held = sum(parts[name] for name in ("base weights", "student, float32", "teacher, float32", "optimizer, adamw"))
    grid = stages(real["full"])["draw sample grids"]
    assert grid == pytest.approx(held + parts["base weights"], rel=0.05)  # the negative weights are another copy
    assert stages(real["full"])["draw finished samples"] == pytest.approx(parts["base weights"] * 1.13, rel=0.05)


def test_a_run_whose_encoder_does_not_fit_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although its updates would; and the stage is named."""
    clip = {"frames": 9, "height": 64, "width": 64}
    recipe = build_recipe({**SMALL, **FINISHED, **clip, "batch_size": 1})
    sketch = CogVideoX.sketch(find_base(str(small)), **clip)
    plan = dry_run(sketch, recipe, PROMPTS)
    assert plan.largest.device_bytes > plan.device_bytes
    free = (plan.largest.device_bytes + plan.device_bytes) // 2
    monkeypatch.setattr(estimate, "available", lambda _: free)
    with pytest.raises(InputError, match=f"to {plan.largest.name}: .*sample_"):
        estimate.check_memory(sketch, recipe, PROMPTS, torch.device("cpu"))
