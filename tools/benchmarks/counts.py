"""What an update and a sample of the shipped models consist of, on any machine: tests see that it does not grow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from benchmarks.common import command, write
from benchmarks.update import OURS, SHAPES, Bench, alone

COUNTS = Path("docs/results/performance/counts.json")
SMALL = ("batch_size=4", "device=cpu")


@click.command("counts")
@click.option("--json", "output", type=click.Path(path_type=Path), default=COUNTS, show_default=True)
def counts(output: Path) -> None:
    """FLOPs, operations, waits, rows and bytes of an update of four rows, and of the samples that it uses up."""
    unit = "of one update of four rows; waits are numbers that the host reads from a tensor"
    write(output, {"schema": 1, "command": command(), "unit": unit, **found()})


def found(shapes: Sequence[str] = ("demo", "video-demo")) -> dict[str, Any]:
    """By shipped model."""
    return {shape: alone(Bench(SHAPES[shape], SMALL, Path()), OURS) for shape in shapes}
