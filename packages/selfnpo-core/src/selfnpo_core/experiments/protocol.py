"""Chosen on one set, claimed on another.

choose   every method's variants at all of its scales, with weights of the first training seed. Of each method one point
         is picked: that of least distance among those whose prompt accuracy is no lower than plain guidance's at the
         scale of its own least distance.
claim    other prompts and other noise, never seen before: plain guidance at all of its scales, and of each method only
         the point that was picked, with weights of every training seed; for weights on the null branch, plain guidance
         of the scale that they come to; and with the first training seed's weights, the other controls.

Both sets are asked within every budget of rows. Nothing that is seen on the second set changes what is drawn there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.controls import CONTROLS, EQUAL
from selfnpo_core.experiments.equal_cost import Entry, best_plain, by_budget, entries
from selfnpo_core.experiments.methods import METHODS
from selfnpo_core.worlds.world import World

CHOOSE, CLAIM, REAL = 21, 22, 23
"""Seeds of the two sets' prompts and noise, and of the real samples that are the floor."""
Cell = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """choose, claim: the two sets. seeds: of training. scales: in the place of every method's own.

    controls: those that the second set has, of `CONTROLS`.
    """

    choose: Table
    claim: Table
    methods: Sequence[str]
    budgets: Sequence[int]
    seeds: Sequence[int]
    scales: Sequence[float] | None = None
    controls: Collection[str] = CONTROLS

    def choices(self) -> list[Entry]:
        """What is drawn on the first set."""
        return entries(self.methods, self.budgets, seed=self.seeds[0], scales=self.scales)

    def picked(self) -> dict[int, dict[str, Cell]]:
        """Budget → method → its cell of the first set. Raises `InputError` while one of that set is missing."""
        wanted = {entry.name for entry in self.choices()}
        there = by_budget(self.choose.folder)
        found = {
            budget: [cell for cell in cells if f"{cell['arm']}-g{cell['scale']:g}" in wanted]
            for budget, cells in there.items()
            if budget in self.budgets
        }
        if missing := len(wanted) - sum(map(len, found.values())):
            raise InputError(f"{missing} of {len(wanted)} cells of the first set are not drawn: --stage choose first")
        return {budget: pick(cells, self.choose.world) for budget, cells in found.items()}

    def claims(self) -> list[Entry]:
        """What is drawn on the second set, plain guidance first and controls last."""
        found: list[Entry] = []
        for budget, picked in self.picked().items():
            plain = [entry for entry in self.choices() if entry.budget == budget and is_plain(entry.method)]
            points = [self._entry(cell, seed) for cell in picked.values() for seed in self._seeds(cell)]
            whole = [entry for entry in points if not is_plain(entry.method)]
            held = [entry for entry in whole if METHODS[entry.method].weights is not None]
            found += [*plain, *whole]
            found += [self._control(entry, EQUAL) for entry in held if EQUAL in self.controls]
            first, rest = [entry for entry in held if entry.seed == self.seeds[0]], set(self.controls) - {EQUAL}
            found += [self._control(entry, name) for entry in first for name in CONTROLS if name in rest]
        return found

    def _seeds(self, cell: Cell) -> Sequence[int | None]:
        return self.seeds if METHODS[cell["method"]].untrained else [None]

    def _entry(self, cell: Cell, seed: int | None, control: str = "") -> Entry:
        drawn = {key: cell[key] for key in ("method", "variant", "scale", "budget")}
        return Entry(**drawn, seed=seed, control=control)

    def _control(self, entry: Entry, name: str) -> Entry:
        return self._entry(vars(entry), entry.seed, name)


def pick(cells: Sequence[Cell], world: World) -> dict[str, Cell]:
    """Method → its cell of least distance, of those no less accurate than plain guidance at its own least distance.

    A method with no such cell is left out. cells: of one budget.
    """
    found = {}
    for method in dict.fromkeys(cell["method"] for cell in cells):
        least = best_plain(cells, world, METHODS[method].base)["accuracy"][0]
        able = [cell for cell in cells if cell["method"] == method and cell["accuracy"][0] >= least]
        if able:
            found[method] = min(able, key=lambda cell: cell[world.distance][0])
    return found


def is_plain(method: str) -> bool:
    """Whether others are compared with it."""
    return METHODS[method].base == method


def cells_of(table: Table, wanted: Sequence[Entry]) -> list[dict[str, Any]]:
    """These entries' cells, from disk."""
    files = [table.folder / f"{entry.name}.json" for entry in wanted]
    if missing := [file for file in files if not file.exists()]:
        raise InputError(f"{len(missing)} cells are not drawn, {missing[0]} among them: draw them first")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]
