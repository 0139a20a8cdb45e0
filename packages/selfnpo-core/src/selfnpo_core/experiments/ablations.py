"""What each setting of a demo's recipe is worth: one is changed at a time, and all are asked the same.

Every change is trained with one seed and drawn on the set of prompts that settings are chosen on, at one guidance
scale. Cells are compared pair by pair with plain guidance and with the recipe as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from selfnpo_core.adapters import attach_npo
from selfnpo_core.errors import InputError
from selfnpo_core.experiments.arms import train_changed
from selfnpo_core.experiments.cells import Arm, Table
from selfnpo_core.experiments.measure import floor, plain
from selfnpo_core.experiments.report import bounds, percent
from selfnpo_core.system.files import file_sha256, read_json, write_text
from selfnpo_core.worlds.world import Demo, World

RECIPE = "recipe"
CHANGES: Mapping[str, Mapping[str, Any]] = {
    RECIPE: {},
    "guidance-1": {"sample_guidance": 1.0},
    "guidance-3": {"sample_guidance": 3.0},
    "drawn-in-5": {"sample_grid_steps": 5},
    "drawn-in-25": {"sample_grid_steps": 25},
    "half-the-samples": {"samples": 0.5, "uses": 2.0},
    "twice-the-samples": {"samples": 2.0, "steps": 2.0},
    "half-the-updates": {"steps": 0.5},
    "twice-the-updates": {"steps": 2.0, "uses": 2.0},
    "last-weights": {"average": None},
    "falling-rate": {"average": None, "lr_schedule": "cosine"},
    "half-prompted": {"student_prompt_dropout": 0.5},
    "rank-4": {"train": "lora", "rank": 4},
    "attention-alone": {"train": "lora", "targets": "attention"},
    "all-weights": {"train": "full"},
    "lora": {"train": "lora"},
    "unweighted": {"loss_weighting": "none"},
}
"""Name → what it changes. Those of `TIMES` are factors of what the recipe has."""
TIMES = ("samples", "steps", "uses")


def changes_of(demo: Demo, name: str) -> dict[str, Any]:
    """The recipe keys of a change, or of several joined by +. Raises `InputError` for what is unknown, or no change."""
    changes: dict[str, Any] = {"train": demo.kind}
    for part in name.split("+"):
        if part not in CHANGES:
            raise InputError(f"there is no change '{part}': use {', '.join(CHANGES)}, or several joined by +")
        changes |= CHANGES[part]
    preset = demo.presets[str(changes["train"])]
    for key in TIMES:
        if key in changes:
            changes[key] = round(changes[key] * _usual(preset, key))
    if name != RECIPE and all({**preset, "train": demo.kind}.get(key) == value for key, value in changes.items()):
        raise InputError(f"'{name}' is this demo's recipe as it is: leave it out")
    return changes


def _usual(preset: Mapping[str, Any], key: str) -> float:
    """What a preset has; samples that it leaves open are as many as its updates take."""
    uses = preset.get("uses", 10)
    open_ = preset["steps"] * preset.get("batch_size", 1) / uses
    return float({"uses": uses, "samples": preset.get("samples") or open_}.get(key) or preset[key])


def possible(demo: Demo) -> list[str]:
    """The changes that change this demo's recipe, it itself first."""
    found = []
    for name in CHANGES:
        try:
            changes_of(demo, name)
        except InputError:
            continue
        found.append(name)
    return found


def draw_ablations(
    demo: Demo, table: Table, pipe: Any, names: Sequence[str], *, seed: int, scale: float, work: Path
) -> None:
    """The cells of plain guidance, the recipe and its changes at one scale; the recipe at half its strength too.

    seed: of the training. work: runs and what they draw, which those that draw alike share.
    """
    wanted = {name: changes_of(demo, name) for name in (RECIPE, *names)}
    table.cell(pipe, Arm(name="cfg", attach=plain, note={}, against=(), base=True), scale)
    for name, changes in wanted.items():
        cache = {"samples_cache": str(work / "samples")}
        run = train_changed(demo, {**changes, **cache}, seed, work / "runs" / f"{name}-s{seed}")
        for beta in (1.0, 0.5) if name == RECIPE else (1.0,):
            table.cell(pipe, _arm(run, name, beta), scale)


def _arm(run: Path, name: str, beta: float) -> Arm:
    note = {"recipe": read_json(run / "npo" / "npo_config.json")["recipe"], "beta": beta}
    note["npo_sha256"] = file_sha256(next((run / "npo").glob("*.safetensors")))
    whole = name == RECIPE and beta == 1

    def attach(pipe: Any) -> AbstractContextManager[object]:
        return attach_npo(pipe, run, beta=beta)

    return Arm(
        name=name if beta == 1 else f"{name}-beta{beta:g}",
        attach=attach,
        note=note,
        against=("cfg",) if whole else ("cfg", RECIPE),
        base=whole,
    )


def write_ablations_page(demo: Demo, cells: Sequence[Mapping[str, Any]], folder: Path, command: str) -> None:
    """folder/README.md: the table, each change beside what it brought."""
    world, scale, name = demo.world, cells[0]["scale"], demo.world.distance.upper()
    real = floor(world, cells[0]["samples"])
    places = 1 if real >= 10 else 2
    text = f"""# One setting at a time: {demo.title}

A toy: {demo.about}. What each setting of its recipe is worth: {cells[0]["samples"]} {world.unit}s a row in
{cells[0]["steps"]} steps at scale {scale:g}, on the prompts that settings are chosen on, with weights of one training
seed. As many real {world.unit}s have an {name} of {real:.{places}f}. Changes are against the recipe, pair by pair, with
95 % intervals. Made by

    {command}

{_rows(cells, world, places)}
"""
    write_text(folder / "README.md", text)


def _rows(cells: Sequence[Mapping[str, Any]], world: World, places: int) -> str:
    key = world.distance
    lines = [
        f"| | {key.upper()} ↓ | change | prompt accuracy ↑ | win rate against plain guidance |",
        "| --- | --- | --- | --- | --- |",
    ]
    order = list(CHANGES)

    def place(cell: Mapping[str, Any]) -> tuple[int, str]:
        name = str(cell["arm"]).removesuffix("-beta0.5").split("+")[0]
        return (order.index(name) if name in order else -1, cell["arm"])

    for cell in sorted(cells, key=place):
        versus, own = cell.get("against_cfg"), cell.get(f"against_{RECIPE}")
        change = "—" if own is None else "{:+.{p}f} [{:+.{p}f}, {:+.{p}f}]".format(*own[f"{key}_change"], p=places)
        wins = "—" if versus is None else percent(versus["win_rate"])
        name = (
            "plain guidance" if cell["arm"] == "cfg" else cell["arm"].replace("-", " ").replace("beta0.5", "at β = ½")
        )
        lines.append(f"| {name} | {bounds(cell[key], places)} | {change} | {percent(cell['accuracy'])} | {wins} |")
    return "\n".join(lines)
