"""Figures put into words and curves: the demo's own table, and the results folder's page over training seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from selfnpo_core.experiments.measure import floor
from selfnpo_core.system.extras import pyplot
from selfnpo_core.system.files import write_text
from selfnpo_core.worlds.world import Demo, World

Cell = Mapping[str, Any]

TITLES = {
    "cfg": "plain guidance",
    "npo": "Self-NPO",
    "random": "random offset",
    "full_simulation": "trained on full simulation",
    "gradient_reversal": "gradient reversal",
    "neon": "Neon",
    "tuned": "preference-tuned",
    "tuned_npo_a0": "preference-tuned, Self-NPO with α = 0",
    "tuned_npo_a1": "preference-tuned, Self-NPO with α = 1",
}
COMPARED = {"npo": "cfg", "tuned_npo_a0": "tuned", "tuned_npo_a1": "tuned"}
"""Arms with negative weights, and the same without them."""
INK = {"cfg": "#4477aa", "npo": "#cc3311"} | {TITLES["cfg"]: "#4477aa", TITLES["npo"]: "#cc3311"}


def table(cells: Sequence[Cell], world: World) -> str:
    """One line a cell: arm, scale, distance, accuracy, win rate against plain guidance, cost."""
    lines = [
        f"| arm | scale | {world.distance.upper()} ↓ | prompt accuracy ↑ | win rate against CFG | rows a {world.unit} "
        "| seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        versus = cell.get("against_cfg")
        wins = percent(versus["win_rate"]) if versus else "—"
        lines.append(
            f"| {cell['arm']} | {cell['scale']:g} | {bounds(cell[world.distance], 1)} | {percent(cell['accuracy'])} "
            f"| {wins} | {cell[f'rows_per_{world.unit}']:g} | {cell['seconds']:.0f} |"
        )
    return "\n".join(lines)


def bounds(interval: Sequence[float], digits: int) -> str:
    """value ± half the interval's width."""
    value, low, high = interval
    return f"{value:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def percent(interval: Sequence[float]) -> str:
    """A proportion and its interval in per cent."""
    value, low, high = (100 * v for v in interval)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def verdict(cells: Sequence[Cell], world: World) -> str:
    """The comparison at the scale where plain guidance has its least distance, in one sentence."""
    key = world.distance
    base = min((cell for cell in cells if cell["arm"] == "cfg"), key=lambda cell: cell[key][0])
    npo = next(cell for cell in cells if cell["arm"] != "cfg" and cell["scale"] == base["scale"])
    change, low, high = npo["against_cfg"][f"{key}_change"]
    accuracy = npo["against_cfg"]["accuracy_change"]
    sure = "beyond" if not low <= 0 <= high else "within"
    return (
        f"At plain guidance's best scale, {base['scale']:g}, Self-NPO changes {key.upper()} by {change:+.1f} "
        f"({100 * change / base[key][0]:+.0f} %), {sure} its 95 % interval [{low:+.1f}, {high:+.1f}], and prompt "
        f"accuracy by {100 * accuracy[0]:+.1f} points [{100 * accuracy[1]:+.1f}, {100 * accuracy[2]:+.1f}]."
    )


def curves(cells: Sequence[Cell], world: World, path: Path, *, title: str) -> None:
    """Distance and prompt accuracy against guidance scale, a line an arm with its 95 % intervals."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    labels = f"{world.distance.upper()} (oracle features)", "prompt accuracy, everything named"
    for axis, key, label in zip(axes, (world.distance, "accuracy"), labels, strict=True):
        for arm in arms:
            own = sorted((cell for cell in cells if cell["arm"] == arm), key=lambda cell: cell["scale"])
            x, values = [cell["scale"] for cell in own], [cell[key] for cell in own]
            errors = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
            axis.errorbar(x, [v[0] for v in values], errors, marker="o", capsize=3, label=arm, color=INK.get(arm))
        axis.set_xlabel("guidance scale")
        axis.set_title(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


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


def summary(cells: Iterable[Cell], world: World) -> list[dict[str, Any]]:
    """One row an arm and scale, with the seeds taken together; what the curves are drawn from."""
    rows = []
    for (arm, scale), some in sorted(
        grouped(cells).items(), key=lambda item: (list(TITLES).index(item[0][0]), item[0][1])
    ):
        versus = {
            part: {key: over_seeds(some, key, part) for key in figures}
            for part, figures in some[0].items()
            if part.startswith("against_") and figures is not None
        }
        rows.append(
            {
                "arm": arm,
                "scale": scale,
                "seeds": len(some),
                "samples": some[0]["samples"],
                world.distance: over_seeds(some, world.distance),
                "accuracy": over_seeds(some, "accuracy"),
                "by_attribute": {
                    name: mean(cell["by_attribute"][name] for cell in some) for name in some[0]["by_attribute"]
                },
                "against_cfg": None,
                **versus,
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], world: World) -> str:
    key, paired = world.distance, any("against_tuned" in row for row in rows)
    more = (" win rate against tuned, % |", " --- |") if paired else ("", "")
    lines = [
        f"| arm | scale | training seeds | {key.upper()} ↓ | {key.upper()} change | prompt accuracy ↑, % "
        f"| win rate against plain, % |{more[0]}",
        f"| --- | --- | --- | --- | --- | --- | --- |{more[1]}",
    ]
    for row in rows:
        versus = row["against_cfg"]
        tuned = _bounds(row["against_tuned"]["win_rate"], 1, "", 100) if "against_tuned" in row else "—"
        change = _bounds(versus[f"{key}_change"], 1, "+") if versus else "—"
        wins = _bounds(versus["win_rate"], 1, "", 100) if versus else "—"
        lines.append(
            f"| {TITLES[row['arm']]} | {row['scale']:g} | {'—' if row['arm'] in ('cfg', 'tuned') else row['seeds']} "
            f"| {_bounds(row[key], 1)} | {change} | {_bounds(row['accuracy'], 1, '', 100)} | {wins} |"
            + (f" {tuned} |" if paired else "")
        )
    return "\n".join(lines)


def _bounds(interval: Sequence[float], digits: int, sign: str = "", factor: float = 1) -> str:
    value, low, high = (factor * v for v in interval)
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def write_page(folder: Path, demo: Demo, command: str) -> str:
    """folder/README.md and folder/curves.png from folder/cells/*.json; returns the page. command: what made them."""
    world = demo.world
    rows = summary(read_cells(folder / "cells"), world)
    curves([{**row, "arm": TITLES[row["arm"]]} for row in rows], world, folder / "curves.png", title=demo.title)
    samples = sorted({row["samples"] for row in rows})
    notes = folder / "notes.md"
    page = _PAGE.format(
        title=demo.title[0].upper() + demo.title[1:],
        about=demo.about,
        command=command,
        unit=world.unit,
        distance=world.distance.upper(),
        samples=" or ".join(f"{n:,}" for n in samples),
        reference=f"{world.judges.reference.count:,}",
        floor=", ".join(f"{floor(world, n):.1f}" for n in samples),
        table=markdown(rows, world),
        findings="\n".join(findings(rows, world)),
        notes="\n" + notes.read_text(encoding="utf-8") if notes.exists() else "",
    )
    write_text(folder / "README.md", page)
    return page


def findings(rows: Sequence[Mapping[str, Any]], world: World) -> list[str]:
    """What the table says of Self-NPO at each scale, also where it does not help."""
    key, found = world.distance, {(row["arm"], row["scale"]): row for row in rows}
    lines = []
    for row in rows:
        without = COMPARED.get(row["arm"], "")
        if (without, row["scale"]) not in found:
            continue
        versus, plain = row[f"against_{without}"], found[without, row["scale"]][key][0]
        told = {"cfg": "plain guidance", "tuned": "the tuned model's plain guidance"}[without]
        verdicts = {
            key.upper(): _verdict(versus[f"{key}_change"], 0, told, lower_is_better=True),
            "prompt accuracy": _verdict(versus["accuracy_change"], 0, told),
            "win rate": _verdict(versus["win_rate"], 0.5, told),
        }
        words = ", ".join(f"{name} {verdict}" for name, verdict in verdicts.items())
        change = 100 * versus[f"{key}_change"][0] / plain
        arm = "" if without == "cfg" else f"{TITLES[row['arm']]}: "
        lines.append(f"- {arm}{'scale' if arm else 'Scale'} {row['scale']:g}: {key.upper()} {change:+.0f} %; {words}.")
    return lines


def _verdict(interval: Sequence[float], neutral: float, without: str, *, lower_is_better: bool = False) -> str:
    _, low, high = interval
    if low <= neutral <= high:
        return f"not told apart from {without}"
    return "better" if (high < neutral) == lower_is_better else "worse"


_PAGE = """# {title}

A toy: the shipped model draws {about}. These figures compare ways of sampling it, and say nothing of the size of an
effect on real models. Made by `{command}`; every row's cells are in `cells/`, with the recipe, the seeds and the
machine.

{samples} {unit}s a cell, the same prompts and seeds in every cell, none of them used to choose the recipe. {distance}
is the Fréchet distance of the oracle's features to those of {reference} real {unit}s (that of {samples} other real
{unit}s is {floor}); prompt accuracy means that everything a caption names is right; the win rate is that of the
shipped preference judge, pair by pair. Figures are means over training seeds; brackets are the envelope of the seeds'
95 % intervals.

{table}

![{distance} and accuracy against guidance scale](curves.png)

Self-NPO against plain guidance, all seeds' intervals taken together:

{findings}
{notes}"""
