"""Ways of guidance compared at equal numbers of forwards: plain, Self-NPO, Neon, and those that need no training.

    python tools/compare_methods.py --world image --work build/frontier-image
    python tools/compare_methods.py --world video --work build/frontier-video

The protocol is docs/results/protocol.md: on one set of prompts a point of each method is chosen, on another set it is
claimed. Hours on two CPU cores. Each cell is one JSON file and is not drawn again, so this can be stopped and started
at any time. Several processes share the work of a set with --stage choose --shard 0/2 and 1/2, then --stage claim
likewise; without them what is missing is drawn and the pages, docs/results/frontier/WORLD, are written. For
autoguidance an earlier state of the model is needed, a diffusers folder: --earlier DIR.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from selfnpo_core.commands.running import run
from selfnpo_core.errors import InputError
from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.controls import CONTROLS
from selfnpo_core.experiments.equal_cost import Entry, fill
from selfnpo_core.experiments.frontier import write_frontier_page
from selfnpo_core.experiments.methods import METHODS, TrainedArms, available
from selfnpo_core.experiments.pareto import write_equal_cost_page
from selfnpo_core.experiments.protocol import CHOOSE, CLAIM, Protocol
from selfnpo_image.demo import pictures
from selfnpo_video.demo import moving

DEMOS = {"image": (pictures.demo, 1000, 2000), "video": (moving.demo, 500, 500)}
"""World → demo, and samples a cell of each of the two sets."""
Value = TypeVar("Value")


@click.command(help=__doc__)
@click.option("--world", type=click.Choice(list(DEMOS)), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Runs and judges' scores; not committed.")
@click.option("--output", type=click.Path(path_type=Path), help="Default: docs/results/frontier/WORLD.")
@click.option("--samples", type=click.IntRange(2), help="A cell of the second set. Default: 2,000 pictures, 500 clips.")
@click.option("--choose-samples", type=click.IntRange(2), help="Of the first. Default: 1,000 pictures, 500 clips.")
@click.option("--budget", default="20,50", show_default=True, help="Rows through the denoiser for each sample.")
@click.option("--scales", help="In the place of every method's own, where it has several.")
@click.option("--arms", help=f"Of {', '.join(METHODS)}. Default: all that can be had on the base.")
@click.option("--seeds", default="1,2,3", show_default=True, help="Training seeds; the first is that of the choice.")
@click.option("--earlier", type=click.Path(path_type=Path), help="Folder of an earlier state of the demo's model.")
@click.option(
    "--stage", type=click.Choice(["choose", "claim"]), help="One of the two sets. Default: one, then the other."
)
@click.option(
    "--controls", default="all", show_default=True, help=f"Of the second set: none, or of {', '.join(CONTROLS)}."
)
@click.option("--shard", default="", help="K/N: every N-th cell of the stage from the K-th, and no page.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def main(
    world: str,
    work: Path,
    output: Path | None,
    samples: int | None,
    choose_samples: int | None,
    budget: str,
    scales: str | None,
    arms: str | None,
    seeds: str,
    earlier: Path | None,
    stage: str | None,
    controls: str,
    shard: str,
    threads: int,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if shard and stage is None:
        raise InputError("a shard is of one set: give --stage choose, and once all of it is drawn, --stage claim")
    make, first, second = DEMOS[world]
    demo, output = make(), output or Path("docs/results/frontier") / world

    def table(name: str, count: int, seed: int) -> Table:
        return Table.of(demo, output / name / "cells", work / name / "scores", samples=count, seed=seed)

    protocol = Protocol(
        choose=table("choose", choose_samples or first, CHOOSE),
        claim=table("claim", samples or second, CLAIM),
        methods=sorted(dict.fromkeys(arms.split(",") if arms else available(earlier)), key=_place),
        budgets=numbers(budget, int),
        seeds=numbers(seeds, int),
        scales=numbers(scales, float) if scales else None,
        controls=wanted_controls(controls),
    )
    choices = protocol.choices()
    trained = TrainedArms(demo=demo, work=work, seed=protocol.seeds[0], earlier=earlier)
    pipe = demo.pipeline()
    told = {"arms": arms, "budget": budget, "scales": scales, "seeds": seeds}
    command = f"python tools/compare_methods.py --world {world}"
    command += "".join(f" --{key} {value}" for key, value in told.items() if value)
    command += "" if controls == "all" else f" --controls {controls}"
    if stage != "claim":
        _draw(protocol.choose, trained, pipe, part(choices, shard))
        if not shard:
            write_equal_cost_page(demo, protocol.choose, output / "choose", command)
    if stage != "choose":
        _draw(protocol.claim, trained, pipe, part(protocol.claims(), shard))
        if not shard:
            write_frontier_page(demo, protocol, output, command, pipe)
    click.echo("this shard is done; once all are, go on without --shard" if shard else f"pages are in {output}")


def _place(method: str) -> int:
    """In the methods' order; what is no method is refused later."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


def _draw(table: Table, trained: TrainedArms, pipe: Any, wanted: Sequence[Entry]) -> None:
    for entry, cell in zip(wanted, fill(table, trained, pipe, wanted), strict=True):
        rows = cell[f"rows_per_{table.world.unit}"]
        distance = cell[table.world.distance][0]
        click.echo(f"{entry.name}: {rows:g} rows, distance {distance:.2f}, accuracy {cell['accuracy'][0]:.3f}")


def wanted_controls(text: str) -> Sequence[str]:
    """Of `CONTROLS`: all, none, or those that are named."""
    named = {"all": CONTROLS, "none": ()}.get(text) or [name for name in text.split(",") if name != "none"]
    if strays := [name for name in named if name not in CONTROLS]:
        raise InputError(f"--controls: there is no {strays[0]}, use all, none, or some of {', '.join(CONTROLS)}")
    return named


def numbers(text: str, kind: Callable[[str], Value]) -> list[Value]:
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"'{text}' is no list of numbers: separate them by commas") from None


def part(wanted: list[Value], shard: str) -> list[Value]:
    """Every N-th from the K-th; all without a shard."""
    if not shard:
        return wanted
    first, _, count = shard.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise InputError(f"shard '{shard}' is not K/N with K < N: the first of two is 0/2")
    return wanted[int(first) :: int(count)]


if __name__ == "__main__":
    sys.exit(run(main, name="compare_methods.py"))
