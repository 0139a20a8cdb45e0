"""What an update costs beside the published algorithm, full simulation, and a plain LoRA of the same model."""

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from benchmarks.common import command, machine, tensor_bytes, threads_option, use_threads, write
from benchmarks.counting import counted
from benchmarks.updates import Ours, PlainLora, Published, Updates, load_vae
from tqdm import tqdm

from selfnpo_core.commands.family import family_named
from selfnpo_core.commands.train import base_dtype, resolve
from selfnpo_core.models.backbone import Backbone
from selfnpo_core.system.devices import DTYPES
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training.accelerators import AMP
from selfnpo_core.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and what it makes. architecture: of tools/random_model.py; none: the shipped model."""

    family: str
    architecture: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


_SMALL_CLIPS = {"frames": 17, "height": 256, "width": 256}
SHAPES: Mapping[str, Shape] = {
    "demo": Shape(family="image"),
    "video-demo": Shape(family="video"),
    "sd15": Shape(family="image", architecture="sd15"),
    "sdxl": Shape(family="image", architecture="sdxl"),
    "cogvideox-2b": Shape(family="video", architecture="cogvideox-2b"),
    "cogvideox-2b-small": Shape(family="video", architecture="cogvideox-2b", settings=_SMALL_CLIPS),
    "cogvideox-5b": Shape(family="video", architecture="cogvideox-5b"),
    "cogvideox-5b-small": Shape(family="video", architecture="cogvideox-5b", settings=_SMALL_CLIPS),
}
OURS = "ours"
TOLD = ("train", "rank", "targets", "rollout", "samples", "uses", "sample_guidance", "sample_grid_steps", "steps")
BOTH_BRANCHES = -2.0
"""A weak guidance that asks both; of −1, which full simulation was published with, this package leaves one out."""
FULL: Mapping[str, Any] = {"train": "full", "learning_rate": 1e-6, "optimizer": "adamw"}


@click.command("update")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="demo", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of the recipe, for all arms alike.")
@click.option("--repeats", default=5, show_default=True, help="Of each arm, in turn with ours; medians count.")
@click.option("--against", default="reference,full_simulation,plain_lora", show_default=True)
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/benchmark"), help="Random models lie there."
)
@click.option(
    "--json", "output", type=click.Path(path_type=Path), help="Default: docs/results/performance/update-SHAPE.json."
)
@threads_option
def update(
    shape: str,
    overrides: tuple[str, ...],
    repeats: int,
    against: str,
    work: Path,
    output: Path | None,
    threads: int,
) -> None:
    """Seconds, bytes and FLOPs of an update, as ratios to what people would use instead.

    All arms train the same model with as many rows an update, one after the other and in turn with ours, in one
    process. Drawing finished samples is counted in, a share for each update.
    """
    use_threads(threads)
    bench = Bench(SHAPES[shape], overrides, work / shape)
    names = [OURS, *against.split(",")]
    each = {name: alone(bench, name) for name in tqdm(names, desc="one by one", unit="arm")}
    rate = matrix_rate(bench)
    pairs = {name: _in_turn(bench, name, repeats) for name in tqdm(names[1:], desc="in turn", unit="arm")}
    figures = {
        "schema": 1,
        "command": command(),
        "machine": f"{machine()}, {bench.recipe.mixed_precision if AMP[bench.recipe.mixed_precision] else 'float32'}",
        "model": bench.about(),
        "recipe": {key: getattr(bench.recipe, key) for key in TOLD},
        "rows an update": bench.recipe.update_rows,
        "matrix FLOP/s": rate,
        "unit": "FLOPs, operations and rows of an update; bytes of tensors held at its peak, weights included",
        "arms": each,
        "in turn": pairs,
        "utilisation": _utilisation(each, pairs, rate),
        "ratios": {name: _ratio(name, pair) for name, pair in pairs.items()},
        "memory ratios": {name: round(each[OURS]["bytes"] / each[name]["bytes"], 3) for name in names[1:]},
    }
    write(output or Path("docs/results/performance") / f"update-{shape}.json", figures)


class Bench:
    """One model, and arms on fresh copies of it."""

    def __init__(self, shape: Shape, overrides: tuple[str, ...], folder: Path):
        self.of, self.shape, self.overrides = family_named(shape.family), shape, overrides
        if shape.architecture is not None and not (folder / "model_index.json").exists():
            script = Path(__file__).parents[1] / "random_model.py"
            subprocess.run([sys.executable, script, shape.architecture, folder], check=True)
        self.model = "demo" if shape.architecture is None else str(folder)
        self.base, self.recipe = self._resolved({})
        self.prompts = self.of.prompts(self.recipe.prompts, self.model)[:8]

    def _resolved(self, changes: Mapping[str, Any], config: str | None = None) -> tuple[Any, Recipe]:
        settings = {"embeddings_cache": "null", **self.shape.settings, **changes}
        words = [*(f"{key}={value}" for key, value in settings.items()), *self.overrides]
        base, recipe = resolve(self.of, {"config": config, "model": self.model, "overrides": words, "resume": False})
        return base, recipe.model_copy(update={"trackers": [], "steps": max(recipe.steps, 100)})

    def arm(self, name: str) -> Updates:
        """One of them, on a model that is read anew."""
        own = self.backbone()
        if name == OURS:
            return Ours(own, self.recipe, self.prompts)
        if name == "plain_lora":
            return PlainLora(own, self.recipe, self.prompts)
        same: dict[str, Any] = {
            "batch_size": self.recipe.batch_size,
            "grad_accumulation": self.recipe.grad_accumulation,
        }
        same |= {
            "mixed_precision": self.recipe.mixed_precision,
            "gradient_checkpointing": self.recipe.gradient_checkpointing,
        }
        if name == "full_simulation":
            _, recipe = self._resolved({**FULL, **same, "rollout": "full", "teacher_guidance": BOTH_BRANCHES}, "paper")
            return Ours(own, recipe, self.prompts)
        if name == "reference":
            _, recipe = self._resolved({**FULL, **same}, "paper")
            folder = Path(self.base.source.location)
            return Published(own, recipe, self.prompts, load_vae(folder, DTYPES[base_dtype(self.recipe)]))
        raise click.BadParameter(f"'{name}' is no arm: use reference, full_simulation, plain_lora")

    def backbone(self) -> Backbone:
        device = "cpu" if self.recipe.device == "cpu" else "auto"
        made: Backbone = self.of.backbone(self.base, self.recipe, DTYPES[base_dtype(self.recipe)], device)
        return made

    def about(self) -> str:
        size = sum(weight.numel() for weight in self.backbone().denoiser.parameters())
        return f"{self.shape.architecture or 'the shipped demo'}, {size:,} weights" + (
            ", random" if self.shape.architecture else ""
        )


def alone(bench: Bench, name: str) -> dict[str, Any]:
    """What one arm's update consists of, and holds."""
    gc.collect()
    before = tensor_bytes()
    arm = bench.arm(name)
    _warm_up(bench, name, arm)
    found: dict[str, Any] = counted(arm.update, arm.networks).to_dict()
    if arm.drawn:
        drawn = counted(lambda: arm.draw(2), arm.networks)
        found["drawing"] = {
            "samples": arm.drawn,
            "flops": round(arm.drawn * drawn.flops / 2),
            "rows": arm.drawn * drawn.rows / 2,
        }
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        arm.update()
        found |= {"bytes": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    else:
        held = tensor_bytes() - before
        found["bytes"] = held + peak_tensor_bytes(arm.update, grad=True)
    arm.close()
    return found


def _warm_up(bench: Bench, name: str, arm: Updates) -> None:
    """The first updates of ours are all measured (drift, spreads), later ones seldom."""
    for _ in range(bench.recipe.measure_every if name == OURS else 1):
        arm.update()


def _in_turn(bench: Bench, name: str, repeats: int) -> dict[str, Any]:
    """Seconds of both arms' updates, one after the other; and of drawing what ours uses up in an update."""
    both = {OURS: bench.arm(OURS), name: bench.arm(name)}
    seconds: dict[str, list[float]] = {what: [] for what in (OURS, "drawing", name)}
    ours, batch = both[OURS], max(2, bench.recipe.batch_size)
    for what, arm in both.items():
        _warm_up(bench, what, arm)
    for _ in range(repeats):
        seconds[OURS].append(_seconds(ours.update))
        seconds[name].append(_seconds(both[name].update))
        if ours.drawn:
            seconds["drawing"].append(_seconds(lambda: ours.draw(batch)) * ours.drawn / batch)
    for arm in both.values():
        arm.close()
    return {
        **{f"seconds, {what}": round(median(times), 4) for what, times in seconds.items() if times},
        "all": {what: [round(time, 4) for time in times] for what, times in seconds.items()},
    }


def _ratio(name: str, pair: Mapping[str, Any]) -> float:
    """Theirs over ours; of a plain LoRA, ours over theirs."""
    ours = pair[f"seconds, {OURS}"] + pair.get("seconds, drawing", 0.0)
    theirs = pair[f"seconds, {name}"]
    return round(float(ours / theirs if name == "plain_lora" else theirs / ours), 3)


def _utilisation(each: Mapping[str, Any], pairs: Mapping[str, Any], rate: float) -> dict[str, float]:
    """Share of the rate of large matrix products, by arm."""
    seconds = {name: pair[f"seconds, {name}"] for name, pair in pairs.items()}
    seconds[OURS] = median(pair[f"seconds, {OURS}"] for pair in pairs.values())
    return {name: round(float(each[name]["flops"]) / seconds[name] / rate, 3) for name in each}


def matrix_rate(bench: Bench, size: int = 2048) -> float:
    """FLOP/s of products of square matrices, in the type that the network calculates in."""
    device = "cuda" if torch.cuda.is_available() and bench.recipe.device != "cpu" else "cpu"
    dtype = AMP[bench.recipe.mixed_precision] or DTYPES[base_dtype(bench.recipe)]
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = min(_seconds(lambda: a @ a) for _ in range(5))
    return float(f"{2 * size**3 / seconds:.3g}")


def _seconds(work: Callable[[], object]) -> float:
    wait_for_device()
    start = time.perf_counter()
    work()
    wait_for_device()
    return time.perf_counter() - start


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
