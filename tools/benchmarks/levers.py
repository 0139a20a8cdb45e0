"""What the switches of a recipe that save memory save, on the demo models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from benchmarks.common import command, machine, use_threads, write
from tqdm import tqdm

from selfnpo_core.training import build_recipe, dry_run
from selfnpo_core.training.measuring import measure
from selfnpo_image import families as image_families
from selfnpo_image.sd15 import SD15
from selfnpo_video import families as video_families
from selfnpo_video.cogvideox import CogVideoX

COMMON: dict[str, Any] = {
    "steps": 100,
    "batch_size": 4,
    "pool_size": 64,
    "pool_device": "device",
    "grid_steps": 4,
    "trackers": [],
    "device": "cpu",
    "max_drift": 100.0,
}
LORA: dict[str, Any] = {**COMMON, "train": "lora", "targets": "all", "rank": 16}
FULL: dict[str, Any] = {**COMMON, "train": "full", "learning_rate": 1e-6}
CHECKPOINTS: dict[str, Any] = {"gradient_checkpointing": True}
SHARED_LEVERS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "pool_device=cpu": {"pool_device": "cpu"},
    "gradient_checkpointing": CHECKPOINTS,
    "batch_size=1, grad_accumulation=4": {"batch_size": 1, "grad_accumulation": 4},
    "optimizer=adamw_fused": {"optimizer": "adamw_fused"},
    "optimizer=adamw8bit": {"optimizer": "adamw8bit"},
}
LORA_LEVERS = {
    **SHARED_LEVERS,
    "base_storage=fp8, gradient_checkpointing": {**CHECKPOINTS, "base_storage": "fp8"},
    "base_storage=int8, gradient_checkpointing": {**CHECKPOINTS, "base_storage": "int8"},
}
FULL_LEVERS = SHARED_LEVERS
WINDOW: dict[str, dict[str, Any]] = {"chunk_frames=3": {"chunk_frames": 3}}


@click.command("levers")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/levers.json"))
@click.option("--updates", default=5, show_default=True, help="Timed for each row; the fastest counts.")
@click.option("--threads", default=1, show_default=True, help="CPU threads; 0 leaves torch's choice.")
def levers(output: Path, updates: int, threads: int) -> None:
    """Bytes held in training and seconds an update, with each switch that saves memory, on the demo models."""
    use_threads(threads)
    models: dict[str, Callable[[], Any]] = {
        "image demo": lambda: SD15(image_families.find_base("demo"), device="cpu"),
        "video demo, 33 frames": lambda: CogVideoX(video_families.find_base("demo"), frames=33, device="cpu"),
    }
    tables = {}
    for name, load in models.items():
        video = "video" in name
        tables[name] = {
            what: _levers(load, settings, {**changes, **(WINDOW if video else {})}, updates, what)
            for what, settings, changes in (("lora", LORA, LORA_LEVERS), ("full", FULL, FULL_LEVERS))
        }
    figures = {
        "schema": 1,
        "command": command(),
        "machine": f"{machine()}, float32",
        "models": "the demo models: toys, whose activations are large beside their weights",
        "unit": "bytes of tensors at the peak of an update, by --dry-run and as seen; processor's seconds of an update",
        **tables,
    }
    write(output, figures)


def _levers(
    load: Callable[[], Any], settings: dict[str, Any], levers: dict[str, dict[str, Any]], updates: int, what: str
) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, changes in tqdm(levers.items(), desc=what, unit="row"):
        recipe, backbone = build_recipe({**settings, **changes}), load()
        asked = dry_run(backbone, recipe, ["a red circle"])
        seen = measure(backbone, recipe, ["a red circle"], updates)
        first = rows.get("as it is", {"seen": seen.bytes, "seconds": seen.seconds})
        rows[name] = {
            "estimated": asked.device_bytes,
            "seen": seen.bytes,
            "of the first row": round(seen.bytes / first["seen"], 3),
            "time, of the first row's": round(seen.seconds / first["seconds"], 2),
            "seconds": round(seen.seconds, 3),
        }
    return rows
