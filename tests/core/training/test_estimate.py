"""What a run will cost, against what it is seen to cost."""

import pytest
import torch
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core.training import dry_run
from selfnpo_core.training.estimate import out_of_memory
from selfnpo_core.training.measuring import measure


def test_dry_run_counts_and_leaves_no_trace():
    backbone = ToyBackbone()
    network, names = backbone.denoiser, list(backbone.denoiser.state_dict())
    plan = dry_run(backbone, toy_recipe(targets="all", objective="dpo"), PROMPTS)
    rank, sizes = 4, {"conv": (4 * 9, 4), "to_q": (81, 48), "to_out": (48, 64)}
    assert plan.trained_parameters == sum(rank * (i + o) for i, o in sizes.values())
    assert plan.network_parameters == sum(p.numel() for p in network.parameters())
    assert plan.rows_per_update == 2 + 1 + 3
    parts = {part.name.split(",")[0]: part for part in plan.memory}
    assert parts["base weights"].bytes == 4 * plan.network_parameters
    assert parts["optimizer"].bytes == 8 * plan.trained_parameters
    assert parts["pool"].bytes == 40 * 64 * 4
    assert not parts["pool"].on_device
    assert parts["prompt embeddings"].bytes == 6 * 64
    assert plan.device_bytes == sum(p.bytes for p in plan.memory if p.on_device)
    assert "6 a row: 2 teacher + 1 base + 3 student" in str(plan)
    assert backbone.denoiser is network
    assert list(network.state_dict()) == names


def test_dry_run_says_what_finished_samples_cost():
    recipe = toy_recipe(rollout="samples", loss="denoising", samples=20, steps=5)
    plan = dry_run(ToyBackbone(), recipe, PROMPTS, processes=2)
    text = str(plan)
    assert plan.teacher_rows == 0
    assert "20 at guidance scale 2 in 3 steps: 6 forwards each, 1.5 a row of the updates" in text
    assert "forwards in all      360 of a row: 120 drawing + 240 training" in text
    assert "latents on disk      5.0 KiB" in text
    assert "samples_cache" not in text.split("latents on disk")[1]
    kept = str(dry_run(ToyBackbone(), recipe.model_copy(update={"samples_cache": "auto"}), PROMPTS))
    assert "5.0 KiB, in the run and in samples_cache as the same files, or twice" in kept
    rounds = str(dry_run(ToyBackbone(), recipe.model_copy(update={"rounds": 3}), PROMPTS, processes=2))
    assert "3 × 20 at guidance scale 2 in 3 steps: 6 forwards each, 4.5 a row" in rounds
    assert "600 of a row: 360 drawing + 240 training" in rounds
    assert "latents on disk      15.0 KiB" in rounds
    two = str(dry_run(ToyBackbone(), recipe.model_copy(update={"samples": None}), PROMPTS, processes=2))
    assert "samples drawn        16 at guidance scale 2 in 3 steps" in two
    one_branch = toy_recipe(rollout="samples", samples=20, sample_guidance=1, sample_grid_steps=7)
    assert "in 7 steps: 7 forwards each" in str(dry_run(ToyBackbone(), one_branch, PROMPTS))
    assert "latents" not in str(dry_run(ToyBackbone(), toy_recipe(), PROMPTS))


def test_activations_grow_with_the_rows():
    """By the same for every row, and never less than the layers' inputs."""
    sizes = []
    for batch_size in (64, 128, 192):
        recipe = toy_recipe(train="full", batch_size=batch_size, pool_size=384)
        sizes.append(dry_run(ToyBackbone(), recipe, PROMPTS).memory[-1].bytes)
    row = (sizes[2] - sizes[1]) / 64
    assert row == (sizes[1] - sizes[0]) / 64
    inputs = 4 * (64 + 81 + 48 + 48)  # conv, to_q, silu, to_out
    assert inputs <= row <= 4 * inputs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": "full"},
        {"train": "full", "grad_accumulation": 2, "batch_size": 2000},
        {"objective": "gradient_reversal", "teacher_guidance": 0.5},
        {"objective": "dpo", "mixed_precision": "bf16"},
        {"rollout": "samples", "loss": "denoising", "loss_weighting": "snr", "samples": 9000},
        {"rollout": "samples", "samples": 9000, "train": "full"},
        {"pool_target": "endpoint", "loss": "denoising", "advance_guidance": 1.0},
    ],
)
def test_the_estimate_is_what_an_update_is_seen_to_hold(changes):
    recipe = toy_recipe(**{"batch_size": 4000, "pool_size": 8000, "steps": 9, **changes})
    backbone = ToyBackbone()
    asked = dry_run(backbone, recipe, PROMPTS).device_bytes
    assert asked == pytest.approx(measure(backbone, recipe, PROMPTS).bytes, rel=0.15)


LEVERS = {
    "gradient_checkpointing=true": {"gradient_checkpointing": True},
    "batch_size=1 with more grad_accumulation": {"batch_size": 1},
    "mixed_precision=bf16": {"mixed_precision": "bf16"},
    "pool_device=cpu": {"pool_device": "cpu"},
    "offload_optimizer=true with engine=zero2": {"offload_optimizer": True},
    "base_storage=fp8": {"base_storage": "fp8", "gradient_checkpointing": True},
    "group_offload=true with sample_every=0": {
        "group_offload": True,
        "gradient_checkpointing": True,
        "sample_every": 0,
    },
    "sample_tiling=true": {"sample_tiling": True},
    "sample_every=0 if it was in a sample grid": {"sample_every": 0},
}
UNTUNED = {"mixed_precision": "no", "pool_device": "device", "sample_every": 1, "gradient_checkpointing": False}


def advice(monkeypatch, backbone=None, **changes) -> list[str]:
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 3 << 30)
    said = out_of_memory(backbone or ToyBackbone(), toy_recipe(**{**UNTUNED, **changes}), torch.device("cpu"))
    assert "out of memory on cpu: 3.0 GiB at the peak, 28.2 KiB of them the network's weights" in said
    return said.partition("what is left to --set: ")[2].split(", ")


def test_out_of_memory_names_the_switches_that_are_left(monkeypatch):
    assert advice(monkeypatch) == list(LEVERS)


@pytest.mark.parametrize("lever", LEVERS)
def test_out_of_memory_does_not_name_what_is_set(monkeypatch, lever):
    word = lever.partition(" ")[0]
    assert not [left for left in advice(monkeypatch, **LEVERS[lever]) if left.startswith(word)]


def test_out_of_memory_names_nothing_that_a_recipe_would_refuse(monkeypatch):
    full = advice(monkeypatch, train="full")
    assert "train=lora" in full
    assert not [word for word in full if word.startswith(("base_storage", "group_offload"))]
    cut = advice(monkeypatch, engine="zero2")
    assert not [word for word in cut if word.startswith(("base_storage", "group_offload", "train"))]
    drawn = advice(monkeypatch, rollout="samples", loss="denoising", samples=20)
    assert not [word for word in drawn if word.startswith(("pool", "group_offload"))]
    assert "base_storage=fp8" in drawn
    assert "group_offload=true" in advice(monkeypatch, sample_every=0)
    everything = {key: value for lever in LEVERS.values() for key, value in lever.items() if key != "base_storage"}
    assert advice(monkeypatch, **everything) == ["base_storage=fp8"]


def test_out_of_memory_names_windows_of_clips(monkeypatch):
    class Clips(ToyBackbone):
        latent_shape = (2, 4, 4, 4)

    assert "chunk_frames" in advice(monkeypatch, Clips())
    assert "chunk_frames" not in advice(monkeypatch, Clips(), chunk_frames=1)
