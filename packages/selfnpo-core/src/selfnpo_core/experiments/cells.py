"""Experiments cell by cell: an arm at a guidance scale, sampled, judged, and kept as one JSON file.

A cell that is on disk is not computed again, so a long table can be stopped and gone on with. Arms are compared at the
same prompts and seeds; the judges' scores of every cell are kept in a folder of their own, because the paired
comparison with plain guidance needs them.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.experiments.measure import Attach, Scores, against, describe, judge, sample, with_distances
from selfnpo_core.system.files import write_tensors, write_text
from selfnpo_core.worlds.world import Demo, Task, World

KEPT = 64
"""Samples of a cell that are kept to be looked at."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to sample. `attach` puts its weights on the pipeline for the duration of a `with` block."""

    name: str
    attach: Attach
    note: Mapping[str, Any]
    """What the JSON says of it: training seed, recipe, strength, …"""
    against: Sequence[str] = ("cfg",)
    """Arms that it is compared with, pair by pair."""
    base: bool = False
    """Others are compared with it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A folder of cells. task: the prompts and seeds of every cell; steps: sampling steps."""

    world: World
    folder: Path
    scores: Path
    task: Task
    steps: int
    batch: int = 64

    @classmethod
    def of(cls, demo: Demo, folder: Path, scores: Path, *, samples: int, seed: int) -> Table:
        """A demo's, of this many samples drawn from a seed, in the demo's own number of steps."""
        task = Task.draw(demo.world, samples, seed=seed)
        return cls(world=demo.world, folder=folder, scores=scores, task=task, steps=demo.steps, batch=100)

    def cell(self, pipe: Any, arm: Arm, scale: float) -> dict[str, Any]:
        """The cell's figures: from disk, or computed now and put there. Arms must come after those of their `against`.

        A base arm is computed again where the judges' scores of it are not on this disk: others are paired with them.
        Raises `InputError` for cells of another number of samples or steps, and where an arm of `against` is missing.
        """
        path = self.folder / f"{arm.name}-g{scale:g}.json"
        if path.exists() and (not arm.base or self._scores_file(arm.name, scale).exists()):
            return self._checked(path)
        bases = {name: self.scores_of(name, scale) for name in arm.against}
        drawn = sample(
            self.world,
            pipe,
            self.task,
            guidance_scale=scale,
            steps=self.steps,
            batch=self.batch,
            name=path.stem,
            attach=arm.attach,
        )
        scores = with_distances(self.world, judge(self.world, drawn.data, self.task.labels))
        count = len(self.task.prompts)
        figures = {
            "schema": 1,
            "arm": arm.name,
            "scale": scale,
            "samples": count,
            **describe(self.world, scores),
            "against_cfg": None,
            **{f"against_{name}": against(self.world, scores, base) for name, base in bases.items()},
            f"rows_per_{self.world.unit}": drawn.forward_rows / count,
            "seconds": round(drawn.seconds, 1),
            "steps": self.steps,
            "scheduler": type(pipe.scheduler).__name__,
            **arm.note,
            "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}",
        }
        self._keep(path.stem, scores, drawn.data)
        write_cell(path, figures)
        return json.loads(path.read_text(encoding="utf-8"))

    def _checked(self, path: Path) -> dict[str, Any]:
        cell: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made, wanted = (cell["samples"], cell["steps"]), (len(self.task.prompts), self.steps)
        if made != wanted:
            raise InputError(
                f"{path} was made with {made[0]} samples of {made[1]} steps, not {wanted[0]} of {wanted[1]}: "
                "choose another output folder, or ask for the same"
            )
        return cell

    def kept(self, arm: str, scale: float) -> Tensor:
        """The first samples of a cell."""
        return load_file(self._scores_file(arm, scale))["pictures"]

    def _scores_file(self, arm: str, scale: float) -> Path:
        return self.scores / f"{arm}-g{scale:g}.safetensors"

    def scores_of(self, arm: str, scale: float) -> Scores:
        """What the judges said of a cell."""
        path = self._scores_file(arm, scale)
        if not path.exists():
            raise InputError(f"{path} is missing: draw the arm {arm} at scale {scale:g} first, to be paired with")
        stored = load_file(path)
        if len(stored["features"]) != len(self.task.prompts):
            raise InputError(f"{path} is of {len(stored['features'])} samples, not {len(self.task.prompts)}: remove it")
        return Scores(
            features=stored["features"],
            right=stored["right"].bool(),
            preference=stored["preference"],
            motion=stored.get("motion"),
            distances=stored.get("distances"),
        )

    def _keep(self, name: str, scores: Scores, data: Tensor) -> None:
        write_tensors(
            self.scores / f"{name}.safetensors",
            {
                "features": scores.features,
                "right": scores.right.to(torch.uint8),
                "preference": scores.preference,
                "pictures": data[:KEPT].clone(),
                **{key: some for key in ("motion", "distances") if (some := getattr(scores, key)) is not None},
            },
        )


def write_cell(path: Path, figures: Mapping[str, Any]) -> None:
    """Write a cell, whole or not at all; six significant digits are enough for all of its figures."""
    short = json.loads(json.dumps(figures), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    write_text(path, json.dumps(short, indent=1) + "\n")
