"""The whole story on a shipped model, in minutes on a CPU: the body of both programs' `demo` command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from selfnpo_core.experiments.arms import make_arm
from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.measure import floor
from selfnpo_core.experiments.report import curves, table, verdict
from selfnpo_core.training import new_run_folder
from selfnpo_core.worlds.world import Demo, Task

FULL_SCALES, FULL_SAMPLES = (1.5, 2.0, 3.0, 5.0, 8.0), 2000
TASK_SEED = 2


def tell(
    demo: Demo,
    *,
    output: Path | None,
    full: bool,
    seed: int,
    samples: int | None,
    echo: Callable[[str], Any] = click.echo,
) -> Path:
    """Train negative weights, sample with and without them, measure; everything goes into one folder."""
    world, output = demo.world, output or new_run_folder("runs", "demo")
    scales = FULL_SCALES if full else demo.scales
    count = samples or (FULL_SAMPLES if full else demo.samples)
    echo(f"1/3  train negative weights from captions alone: no {world.unit} is read")
    arms = [make_arm(demo, name, seed, output) for name in ("cfg", "npo")]
    echo("2/3  sample with plain guidance and with the negative weights, at the same prompts and seeds")
    task = Task.draw(world, count, TASK_SEED)
    cells_of = Table(
        world=world,
        folder=output / "cells",
        scores=output / "scores",
        task=task,
        steps=demo.steps,
        batch=demo.batch,
    )
    pipe = demo.pipeline()
    cells = [cells_of.cell(pipe, arm, scale) for scale in scales for arm in arms]
    echo("3/3  what the judges of the demo world say\n")
    words = table(cells, world)
    echo(words)
    echo("\n" + verdict(cells, world))
    least = floor(world, count)
    name = world.distance
    echo(f"{name.upper()} is biased upwards at this number: {count} real {world.unit}s have {least:.1f}.")
    shown = max(scales)  # where guidance overshoots, the difference can be seen
    columns = {"CFG": cells_of.kept("cfg", shown), "Self-NPO": cells_of.kept(arms[1].name, shown)}
    made = demo.show(columns, task.prompts, output)
    curves(cells, world, output / "curves.png", title=demo.title)
    (output / "table.md").write_text(words + "\n", encoding="utf-8")
    figures = {"schema": 1, f"{name}_of_real_{world.unit}s": least, "cells": cells}
    (output / "demo.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    echo(f"\n{made}, curves.png, table.md and the negative weights are in {output}")
    return output
