"""What the second set says of each method's point, and whether it is what was asked for beforehand.

A claim is a method's point within a budget, of all training seeds together: figures are means over the seeds, intervals
the envelope of the seeds' own. It is compared, pair by pair, with plain guidance at the scale that the first set gave
it. The excess ratio is (distance − that of real samples)/(plain's − that of real samples).

Asked for: a ratio of the excess of at most 0.75 (of clips, a ratio of the distances themselves of at most 0.85, and at
least 0.95 of plain's motion); the distance lower beyond chance in every seed, after Holm's correction for all claims;
prompt accuracy no lower, neither in the mean nor beyond chance in any seed; three seeds where weights are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selfnpo_core.experiments.controls import EQUAL
from selfnpo_core.experiments.equal_cost import Entry, best_plain, check_budget, versus, write_comparisons
from selfnpo_core.experiments.methods import METHODS
from selfnpo_core.experiments.pareto import compared
from selfnpo_core.experiments.protocol import Cell, Protocol, cells_of, is_plain
from selfnpo_core.experiments.report import over_seeds
from selfnpo_core.worlds.world import World

SEEDS = 3
EXCESS, DISTANCE, MOTION = 0.75, 0.85, 0.95
AGAINST, AGAINST_EQUAL, AGAINST_WHOLE = "against", "against_equal", "against_whole"
"""A cell's comparison with plain guidance at its best; with plain guidance of equal effective scale; of a control, with
the negative itself."""
Mean = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """cells: one a training seed. base: plain guidance. signs: of each seed, −1 worse, 1 better than the base.

    equal: plain guidance of equal effective scale, one cell a training seed; none where there is nothing to compare.
    """

    cells: Sequence[Cell]
    base: Cell
    signs: Sequence[Mapping[str, int]]
    equal: Sequence[Cell]

    @property
    def method(self) -> str:
        return str(self.cells[0]["method"])

    def mean(self, key: str, versus: str | None = None) -> Mean:
        return over_seeds(self.cells, key, versus)

    @property
    def effective_scale(self) -> float | None:
        return sum(cell["effective_scale"] for cell in self.equal) / len(self.equal) if self.equal else None

    def missed(self, world: World) -> list[str]:
        """What is missing of what was asked for; nothing: it is met."""
        told = []
        if len(world.shape) == 4:
            ratio = self.mean(world.distance)[0] / self.base[world.distance][0]
            told += [f"{world.distance.upper()} is {ratio:.2f} of plain's, not {DISTANCE}"] if ratio > DISTANCE else []
            moved = self.mean("motion_ratio", AGAINST)[0]
            told += [f"motion is {moved:.2f} of plain's"] if moved < MOTION else []
        elif (ratio := self.mean("excess_ratio", AGAINST)[0]) > EXCESS:
            told.append(f"the excess is {ratio:.2f} of plain's, not {EXCESS}")
        if any(sign[world.distance.upper()] < 1 for sign in self.signs):
            told.append(f"{world.distance.upper()} is not lower beyond chance in every seed")
        change = self.mean("accuracy_change", AGAINST)[0]
        if change < 0 or any(sign["prompt accuracy"] < 0 for sign in self.signs):
            told.append(f"prompt accuracy changes by {100 * change:+.1f} points")
        if METHODS[self.method].untrained and len(self.cells) < SEEDS:
            told.append(f"{len(self.cells)} training seeds are fewer than {SEEDS}")
        return told


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of one budget. base: plain guidance at its best on the second set; plain: all of its scales there.

    controls: cells with the comparison `AGAINST_WHOLE`. without: methods without a point as accurate as plain guidance.
    """

    base: Cell
    plain: Sequence[Cell]
    claims: Sequence[Claim]
    controls: Sequence[Cell]
    without: Sequence[str]


def compare(protocol: Protocol, real: Tensor) -> None:
    """Write every comparison of the second set into its cells. real: `resampled` distances of as many real samples.

    The judges' scores of both sides must be on this disk, unless a cell has the comparison already.
    """
    table, drawn = protocol.claim, _drawn(protocol)
    for entry, cell in drawn:
        same_cost = [other for each, other in drawn if each.budget == entry.budget]
        best = best_plain(same_cost, table.world, METHODS[entry.method].base)
        sides: dict[str, Cell | None] = {AGAINST: best}
        if all(best[key] == cell[key] for key in ("arm", "scale")):
            sides = {AGAINST: None}
        if METHODS[entry.method].weights is not None:
            same = {other.control: theirs for other, theirs in drawn if _point(other) == _point(entry)}
            sides |= {AGAINST_WHOLE: same[""]} if entry.control else {AGAINST_EQUAL: same.get(EQUAL)}
        found = {
            key: None if other is None else versus(table, cell, other, cell.get(key), real)
            for key, other in sides.items()
        }
        if any(key not in cell or cell[key] != value for key, value in found.items()):
            write_comparisons(table, cell, found)


def found(protocol: Protocol) -> dict[int, Found]:
    """Budget → what is known. Holm's correction is for the claims of all budgets together."""
    drawn = _drawn(protocol)
    claimed = [cell for entry, cell in drawn if not entry.control and not is_plain(entry.method)]
    signs = {id(finding.cell): finding.signs for finding in compared(claimed, protocol.claim.world, AGAINST)}
    result = {}
    for budget, picked in protocol.picked().items():
        own = [(entry, cell) for entry, cell in drawn if entry.budget == budget]
        check_budget([cell for _, cell in own], protocol.claim.world)
        plain = [cell for entry, cell in own if is_plain(entry.method)]
        bases = {
            base: best_plain(plain, protocol.claim.world, base)
            for base in dict.fromkeys(cell["method"] for cell in plain)
        }
        result[budget] = Found(
            base=bases["cfg"],
            plain=plain,
            claims=[_claim(own, method, bases, signs) for method in picked if not is_plain(method)],
            controls=[cell for entry, cell in own if entry.control],
            without=[method for method in protocol.methods if method not in picked],
        )
    return result


def _claim(
    own: Sequence[tuple[Entry, Cell]], method: str, bases: Mapping[str, Cell], signs: Mapping[int, Mapping[str, int]]
) -> Claim:
    cells = _cells(own, method, "")
    return Claim(
        cells=cells,
        base=bases[METHODS[method].base],
        signs=[signs[id(cell)] for cell in cells],
        equal=_cells(own, method, EQUAL),
    )


def _drawn(protocol: Protocol) -> list[tuple[Entry, dict[str, Any]]]:
    wanted = protocol.claims()
    return list(zip(wanted, cells_of(protocol.claim, wanted), strict=True))


def _point(entry: Entry) -> tuple[str, int, int | None]:
    """What a negative and its controls share: the weights, and where they are used."""
    return entry.method, entry.budget, entry.seed


def _cells(drawn: Sequence[tuple[Entry, Cell]], method: str, control: str) -> list[Cell]:
    """One a training seed."""
    return [cell for entry, cell in drawn if (entry.method, entry.control) == (method, control)]
