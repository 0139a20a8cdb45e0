"""Ways of guidance compared at equal numbers of forwards: plain, Self-NPO, Neon, and those that need no training.

    python tools/compare_methods.py --world image --work build/matched-image
    python tools/compare_methods.py --world video --work build/matched-video

Hours on two CPU cores. Each cell is one JSON file and is not drawn again, so this can be stopped and started at any
time. Several processes share the work with --shard 0/2, --shard 1/2; without --shard what is missing is drawn and the
page, docs/results/matched/WORLD, is written. For autoguidance an earlier state of the model is needed; the history of
this repository has one of each, to be given as --earlier build/packages/…/model:

    mkdir -p build
    git archive a180c68 packages/selfnpo-image/src/selfnpo_image/demo/assets/model | tar x -C build
    git archive 78eadd7 packages/selfnpo-video/src/selfnpo_video/demo/assets/model | tar x -C build
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import torch

from selfnpo_core.commands.running import run
from selfnpo_core.errors import InputError
from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.equal_cost import entries, fill
from selfnpo_core.experiments.methods import METHODS, TrainedArms
from selfnpo_core.experiments.pareto import write_equal_cost_page
from selfnpo_core.worlds.world import Task
from selfnpo_image.demo import shapes
from selfnpo_video.demo import moving

DEMOS = {"image": (shapes.demo, 2000), "video": (moving.demo, 500)}
TASK_SEED = 12  # of prompts that neither a recipe nor a table was made with

Value = TypeVar("Value")


@click.command(help=__doc__)
@click.option("--world", type=click.Choice(list(DEMOS)), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Runs and judges' scores; not committed.")
@click.option("--output", type=click.Path(path_type=Path), help="Default: docs/results/matched/WORLD.")
@click.option("--samples", type=click.IntRange(2), help="Samples a cell. Default: 2,000 pictures, 500 clips.")
@click.option("--budget", default="20,40", show_default=True, help="Rows through the denoiser for each sample.")
@click.option("--scales", help="In the place of every method's own.")
@click.option("--arms", help=f"Of {', '.join(METHODS)}. Default: all that can be had.")
@click.option("--seed", default=1, show_default=True, help="Training seed.")
@click.option("--earlier", type=click.Path(path_type=Path), help="Folder of an earlier state of the demo's model.")
@click.option("--shard", default="", help="K/N: every N-th cell from the K-th, and no page.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def main(
    world: str,
    work: Path,
    output: Path | None,
    samples: int | None,
    budget: str,
    scales: str | None,
    arms: str | None,
    seed: int,
    earlier: Path | None,
    shard: str,
    threads: int,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    make, usual = DEMOS[world]
    demo, output = make(), output or Path("docs/results/matched") / world
    names = arms.split(",") if arms else [name for name in METHODS if earlier or name != "autoguidance"]
    wanted = entries(
        names,
        numbers(budget, int),
        seed=seed,
        scales=numbers(scales, float) if scales else None,
    )
    task = Task.draw(demo.world, samples or usual, seed=TASK_SEED)
    table = Table(
        world=demo.world, folder=output / "cells", scores=work / "scores", task=task, steps=demo.steps, batch=100
    )
    trained = TrainedArms(demo=demo, work=work, seed=seed, earlier=earlier)
    mine = part(wanted, shard) if shard else wanted
    for entry, cell in zip(mine, fill(table, trained, demo.pipeline(), mine), strict=True):
        rows = cell[f"rows_per_{demo.world.unit}"]
        distance = cell[demo.world.distance][0]
        click.echo(f"{entry.name}: {rows:g} rows, distance {distance:.2f}, accuracy {cell['accuracy'][0]:.3f}")
    if shard:
        click.echo("this shard is done; once all are, the same command without --shard writes the page")
        return
    write_equal_cost_page(demo, table, output, f"python tools/compare_methods.py --world {world} --budget {budget}")
    click.echo(f"{output / 'README.md'} and pareto.png are written")


def numbers(text: str, kind: Callable[[str], Value]) -> list[Value]:
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"'{text}' is no list of numbers: separate them by commas") from None


def part(wanted: list[Value], shard: str) -> list[Value]:
    """Every N-th from the K-th."""
    first, _, count = shard.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise InputError(f"shard '{shard}' is not K/N with K < N: the first of two is 0/2")
    return wanted[int(first) :: int(count)]


if __name__ == "__main__":
    sys.exit(run(main, name="compare_methods.py"))
