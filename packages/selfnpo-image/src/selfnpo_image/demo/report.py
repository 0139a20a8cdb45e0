"""The results folder's page: every arm's figures over training seeds, as Markdown, from the cells on disk."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from selfnpo_image.demo import measure, pictures

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


def write_page(folder: Path) -> str:
    """folder/README.md and folder/curves.png from folder/cells/*.json; returns the page."""
    rows = summary(read_cells(folder / "cells"))
    pictures.curves(
        [{**row, "arm": TITLES[row["arm"]]} for row in rows], folder / "curves.png", title="demo model (a toy)"
    )
    samples = sorted({row["samples"] for row in rows})
    page = _PAGE.format(
        samples=" or ".join(f"{n:,}" for n in samples),
        floor=", ".join(f"{measure.floor(n):.1f}" for n in samples),
        table=markdown(rows),
        findings="\n".join(findings(rows)),
    )
    (folder / "README.md").write_text(page, encoding="utf-8")
    return page


def findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table says of Self-NPO at each scale, also where it does not help."""
    base = {row["scale"]: row for row in rows if row["arm"] == "cfg"}
    lines = []
    for row in rows:
        if row["arm"] != "npo" or row["scale"] not in base:
            continue
        versus, plain = row["against_cfg"], base[row["scale"]]["fid"][0]
        verdicts = {
            "FID": _verdict(versus["fid_change"], 0, lower_is_better=True),
            "prompt accuracy": _verdict(versus["accuracy_change"], 0),
            "win rate": _verdict(versus["win_rate"], 0.5),
        }
        words = ", ".join(f"{name} {verdict}" for name, verdict in verdicts.items())
        lines.append(f"- Scale {row['scale']:g}: FID {100 * versus['fid_change'][0] / plain:+.0f} %; {words}.")
    return lines


def _verdict(interval: Sequence[float], neutral: float, *, lower_is_better: bool = False) -> str:
    _, low, high = interval
    if low <= neutral <= high:
        return "not told apart from plain guidance"
    return "better" if (high < neutral) == lower_is_better else "worse"


_PAGE = """# The demo model's table

A toy: the shipped model draws coloured shapes at 64×64. These figures compare ways of sampling it, and say nothing of
the size of an effect on real models. Made by `python tools/demo_results.py`; every row's cells are in `cells/`, with
the recipe, the seeds and the machine.

{samples} pictures a cell, the same prompts and seeds in every cell, none of them used to choose the recipe. FID is the
Fréchet distance of the oracle's 64 features to those of 50,000 real pictures (that of {samples} other real pictures is
{floor}); prompt accuracy means that everything a
caption names is right; the win rate is that of the shipped preference judge, pair by pair. Figures are means over
training seeds; brackets are the envelope of the seeds' 95 % intervals.

{table}

![FID and accuracy against guidance scale](curves.png)

Self-NPO against plain guidance, all seeds' intervals taken together:

{findings}
"""
