"""The results folder's page: every arm's figures over training seeds, as Markdown, from the cells on disk."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Cell = Mapping[str, Any]

TITLES = {
    "cfg": "plain guidance",
    "npo": "Self-NPO",
    "random": "random offset of equal norm",
    "full_simulation": "trained on full simulation",
    "gradient_reversal": "gradient reversal",
    "neon": "Neon",
}


def read_cells(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def arm_of(cell: Cell) -> str:
    """The arm without its training seed."""
    return str(cell["arm"]).rpartition("-s")[0] or str(cell["arm"])


def grouped(cells: Iterable[Cell]) -> dict[tuple[str, float], list[Cell]]:
    """(arm, scale) → its cells, one a training seed."""
    groups: dict[tuple[str, float], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[arm_of(cell), cell["scale"]].append(cell)
    return dict(groups)


def over_seeds(cells: Sequence[Cell], key: str, part: str | None = None) -> tuple[float, float, float]:
    """A figure's mean over training seeds; its interval is the envelope of the seeds' own 95 % intervals."""
    intervals = [cell[part][key] if part else cell[key] for cell in cells]
    return mean(i[0] for i in intervals), min(i[1] for i in intervals), max(i[2] for i in intervals)


def summary(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One row an arm and scale, with the seeds taken together; what the curves are drawn from."""
    rows = []
    for (arm, scale), some in sorted(
        grouped(cells).items(), key=lambda item: (list(TITLES).index(item[0][0]), item[0][1])
    ):
        versus = None
        if arm != "cfg":
            versus = {key: over_seeds(some, key, "against_cfg") for key in some[0]["against_cfg"]}
        rows.append(
            {
                "arm": arm,
                "scale": scale,
                "seeds": len(some),
                "samples": some[0]["samples"],
                "fid": over_seeds(some, "fid"),
                "accuracy": over_seeds(some, "accuracy"),
                "against_cfg": versus,
                "rows_per_picture": some[0]["rows_per_picture"],
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| arm | scale | training seeds | FID ↓ | FID change | prompt accuracy ↑, % | win rate against plain, % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        versus = row["against_cfg"]
        change = _bounds(versus["fid_change"], 1, "+") if versus else "—"
        wins = _bounds(versus["win_rate"], 1, "", 100) if versus else "—"
        lines.append(
            f"| {TITLES[row['arm']]} | {row['scale']:g} | {row['seeds'] if versus else '—'} | {_bounds(row['fid'], 1)} "
            f"| {change} | {_bounds(row['accuracy'], 1, '', 100)} | {wins} |"
        )
    return "\n".join(lines)


def _bounds(interval: Sequence[float], digits: int, sign: str = "", factor: float = 1) -> str:
    value, low, high = (factor * v for v in interval)
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
