"""What a recipe takes on this machine, beside what `train --dry-run` says."""

import os
import time
from pathlib import Path
from typing import Any

import click
import torch
from benchmarks.common import command, machine, write

from selfnpo_core.commands.family import family_named
from selfnpo_core.commands.train import base_dtype, resolve
from selfnpo_core.system.devices import DTYPES
from selfnpo_core.system.processes import is_main
from selfnpo_core.training import dry_run
from selfnpo_core.training.measuring import measure

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


@click.command("recipe")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--family", type=click.Choice(["image", "video"]), required=True)
@click.option("--model", help="In the place of the recipe's, such as a folder of tools/random_model.py.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As of `train`.")
@click.option("--updates", default=3, show_default=True, help="Timed; the fastest counts.")
@click.option("--output", type=click.Path(path_type=Path), help="Default: docs/results/recipes/NAME.json.")
@click.option("--local_rank", type=int, hidden=True, help="Added by `deepspeed`.")
def recipe(
    config: Path,
    family: str,
    model: str | None,
    overrides: tuple[str, ...],
    updates: int,
    output: Path | None,
    local_rank: int | None,
) -> None:
    """Memory and time of a recipe's updates on this machine, by the estimate and as seen; started as training is.

    \b
        python tools/benchmark.py recipe recipes/sd15-lora.yaml --family image
        torchrun --nproc-per-node 8 tools/benchmark.py recipe recipes/cogvideox-2b-zero3.yaml --family video
    """
    asked: dict[str, Any] = {"config": str(config), "model": model, "overrides": overrides, "resume": False}
    of = family_named(family)
    base, made = resolve(of, asked)
    made = made.model_copy(update={"trackers": []})
    prompts = of.prompts(made.prompts, str(made.model))
    dtype, device = DTYPES[base_dtype(made)], "cpu" if made.device == "cpu" else "auto"
    start = time.perf_counter()
    backbone = of.backbone(base, made, dtype, device)
    loaded = time.perf_counter() - start
    estimate = dry_run(of.sketch(base, made, dtype) or backbone, made, prompts, PROCESSES)
    seen = measure(backbone, made, prompts[: max(1, len(prompts) // 100)], updates)
    if not is_main():
        return
    figures = {
        "schema": 1,
        "command": command(),
        "machine": where(),
        "processes": PROCESSES,
        "recipe": made.model_dump(mode="json"),
        "parameters": estimate.network_parameters,
        "estimated bytes": {part.name: part.bytes for part in estimate.memory if part.on_device},
        "estimated": estimate.device_bytes,
        "seen": seen.bytes,
        "seen, of the estimate": round(seen.bytes / estimate.device_bytes, 3),
        "seconds an update": round(seen.seconds, 4),
        "seconds to load": round(loaded, 1),
        "unit": "bytes held at most on a device in an update, by --dry-run and as seen; of the first process",
    }
    write(output or Path("docs/results/recipes") / f"{config.stem}.json", figures)


def where() -> str:
    """The machine, and its card."""
    card = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return card + machine()
