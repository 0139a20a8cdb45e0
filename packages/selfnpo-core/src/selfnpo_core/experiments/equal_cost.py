"""Ways of sampling compared at equal numbers of forwards.

A budget is so many rows through the denoiser for every sample. A method that runs three rows a step gets fewer steps,
one that runs one gets more, so that all cells of a budget cost the same but for a part of a step. Rows are counted in
the network itself, not computed. Every cell is compared pair by pair with plain guidance at its best scale within the
same budget, and those of trained weights with the same method, scale and steps without them too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.experiments.cells import Arm, Table, write_cell
from selfnpo_core.experiments.measure import Attach, against, excess_ratio, motion_ratio, plain, sample
from selfnpo_core.experiments.methods import METHODS, TrainedArms, Variant, make_control
from selfnpo_core.worlds.world import Task, World

MOST_ROWS = 3
"""Of a step, in any method: cells of a budget are less than this apart."""
UNTRAINED = "against_untrained"
"""A cell's comparison with the same without its trained weights, where "against" is with plain guidance at its best."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cell to be: a method's variant at a scale, within a budget of rows a sample."""

    method: str
    variant: Variant
    scale: float
    budget: int
    seed: int | None
    """Training seed, where weights are trained."""
    control: str = ""
    """Of `controls.CONTROLS`, in the method's place. It has the method's steps, whatever its own rows."""

    @property
    def arm(self) -> str:
        settings = [f"{name}{value:g}" for name, value in self.variant.items()]
        settings += [] if self.seed is None else [f"s{self.seed}"]
        what = f"{self.method}.{self.control}" if self.control else self.method
        return "-".join([what, *settings, f"b{self.budget}"])

    @property
    def name(self) -> str:
        return f"{self.arm}-g{self.scale:g}"


def entries(
    methods: Sequence[str], budgets: Sequence[int], *, seed: int, scales: Sequence[float] | None = None
) -> list[Entry]:
    """Every variant of these methods at every scale, within every budget; plain guidance first.

    scales: in the place of each method's own, but for one whose guidance scale has one value alone.
    """
    for name in methods:
        if name not in METHODS:
            raise InputError(f"method '{name}' is unknown: use {', '.join(METHODS)}")
    for base in dict.fromkeys(["cfg", *(METHODS[name].base for name in methods)]):
        if base not in methods:
            raise InputError(f"all is compared with plain guidance: have {base} among the methods")
    return [
        Entry(
            method=name,
            variant=variant,
            scale=scale,
            budget=budget,
            seed=seed if METHODS[name].untrained else None,
        )
        for budget in budgets
        for name in sorted(dict.fromkeys(methods), key=list(METHODS).index)
        for variant in METHODS[name].variants
        for scale in (scales if scales and len(METHODS[name].scales) > 1 else METHODS[name].scales)
    ]


def fill(table: Table, arms: TrainedArms, pipe: Any, wanted: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """The cells of these entries one by one, from disk or drawn now. `table.steps` is not used."""
    for entry in wanted:
        path = table.folder / f"{entry.name}.json"
        if path.exists():
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            made = Arm(name=entry.arm, attach=_nothing, note={}, against=())
        else:
            made, steps = _made(table, arms if entry.seed is None else replace(arms, seed=entry.seed), pipe, entry)
        yield replace(table, steps=steps).cell(pipe, made, entry.scale)


def _made(table: Table, arms: TrainedArms, pipe: Any, entry: Entry) -> tuple[Arm, int]:
    """An entry's arm, and its sampling steps."""

    def within(attach: Attach) -> int:
        return steps_within(table.world, pipe, table.task, attach, entry.scale, entry.budget)

    own: dict[str, Any] = {"method": entry.method, "variant": dict(entry.variant), "budget": entry.budget}
    if entry.control:
        steps, own = within(plain), {**own, "control": entry.control}
        attach, note = make_control(arms, entry.method, entry.variant, entry.control, scale=entry.scale, steps=steps)
    else:
        attach, note = METHODS[entry.method].make(arms, entry.variant)
        steps = within(attach)
    return Arm(name=entry.arm, attach=attach, note={**note, **own}, against=()), steps


def _nothing(_pipe: Any) -> Any:
    raise AssertionError("a cell on disk is not drawn again")


def steps_within(world: World, pipe: Any, task: Task, attach: Attach, scale: float, budget: int) -> int:
    """The most sampling steps whose rows are within the budget, by sampling once and counting, with bisection."""
    one = Task(labels=task.labels[:1], prompts=task.prompts[:1], seeds=task.seeds[:1])

    @cache
    def rows(steps: int) -> int:
        return sample(world, pipe, one, guidance_scale=scale, steps=steps, attach=attach).forward_rows

    steps = most_within(rows, budget)
    if not budget - MOST_ROWS < rows(steps) <= budget:
        raise InputError(f"no number of steps comes near {budget} rows at scale {scale:g}: choose another budget")
    return steps


def most_within(rows: Callable[[int], int], budget: int) -> int:
    """The largest n ≤ budget with rows(n) ≤ budget, of a function that does not fall and is at most `MOST_ROWS`·n."""
    low, high = budget // MOST_ROWS, budget + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rows(middle) <= budget else (low, middle)
    if low == 0:
        raise InputError(f"a budget of {budget} rows is less than one step: give more")
    return low


def pair_up(table: Table, cells: Sequence[Mapping[str, Any]]) -> None:
    """Compare each cell of one budget with its base's plain guidance at its best scale, and write what is new.

    A cell of trained weights is compared with the same without them too, where that was drawn. The judges' scores of
    both must be on this disk, unless the cell has the comparison already.
    """
    check_budget(cells, table.world)
    for cell in cells:
        best = best_plain(cells, table.world, METHODS[cell["method"]].base)
        without = _untrained(cell, cells)
        found = {
            "against": None if cell is best else versus(table, cell, best, cell.get("against")),
            UNTRAINED: None if without is None else versus(table, cell, without, cell.get(UNTRAINED)),
        }
        if any(key not in cell or cell[key] != value for key, value in found.items()):
            write_comparisons(table, cell, found)


def write_comparisons(table: Table, cell: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """A cell with its comparisons, in the place of what it had."""
    kept = {key: value for key, value in cell.items() if key != "against_cfg"}
    write_cell(table.folder / f"{cell['arm']}-g{cell['scale']:g}.json", {**kept, **found})


def _untrained(cell: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The cell that samples as this one does, but for its trained weights; None if there is none."""

    def same(other: Mapping[str, Any]) -> bool:
        drawn = all(other[key] == cell[key] for key in ("scale", "steps"))
        return drawn and other["variant"].items() <= cell["variant"].items()

    method = METHODS[cell["method"]].untrained
    return next((other for other in cells if other["method"] == method and same(other)), None)


def versus(
    table: Table, cell: Mapping[str, Any], base: Mapping[str, Any], known: Any, real: Tensor | None = None
) -> Mapping[str, Any]:
    """The comparison of a cell with another, as it is known already or made now.

    real: `resampled` distances of real samples, for the ratio of what both distances are above theirs.
    """
    which = {key: base[key] for key in ("arm", "scale")}
    if known is not None and {key: known[key] for key in which} == which:
        return known
    scores, others = (table.scores_of(each["arm"], each["scale"]) for each in (cell, base))
    found: dict[str, Any] = {**which, **against(table.world, scores, others)}
    if real is not None:
        found["excess_ratio"] = excess_ratio(table.world, scores, others, real)
        moved = motion_ratio(scores, others)
        found |= {} if moved is None else {"motion_ratio": moved}
    return found


def best_plain(cells: Sequence[Mapping[str, Any]], world: World, base: str = "cfg") -> Mapping[str, Any]:
    """Plain guidance at the scale of its least distance. base: of the base, or `tuned`."""
    plain_cells = [cell for cell in cells if cell["method"] == base]
    if not plain_cells:
        raise InputError(f"there is no cell of {base}, with which others are compared: have it among the methods")
    return min(plain_cells, key=lambda cell: cell[world.distance][0])


def check_budget(cells: Sequence[Mapping[str, Any]], world: World) -> None:
    """Raise `InputError` unless these cells may stand in one front: of one budget, which each of them uses up.

    Controls have a method's steps, whatever they cost.
    """
    for what in ("budget", "samples", "scheduler"):
        found = {cell[what] for cell in cells}
        if len(found) != 1:
            raise InputError(
                f"cells of {what} {' and '.join(map(str, sorted(found)))} cannot be compared: keep them apart"
            )
    for cell in cells:
        rows, budget = cell[f"rows_per_{world.unit}"], cell["budget"]
        if not (cell.get("control") or budget - MOST_ROWS < rows <= budget):
            raise InputError(
                f"{cell['arm']} at {cell['scale']:g} ran {rows:g} rows a {world.unit}, not {budget}: it is not to be "
                "compared with the others, remove it"
            )


def by_budget(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The cells on disk, in the methods' order."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    order = list(METHODS)
    cells.sort(
        key=lambda c: (c["budget"], order.index(c["method"]), sorted(c["variant"].items()), c["scale"], c["arm"])
    )
    return {budget: [c for c in cells if c["budget"] == budget] for budget in sorted({c["budget"] for c in cells})}
