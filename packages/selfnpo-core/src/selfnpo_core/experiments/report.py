"""Figures put into words and curves: the demo's own table, and means over training seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from selfnpo_core.system.extras import pyplot
from selfnpo_core.worlds.world import World

Cell = Mapping[str, Any]

INK = {"cfg": "#4477aa", "npo": "#cc3311"}


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


def over_seeds(cells: Sequence[Cell], key: str, part: str | None = None) -> tuple[float, float, float]:
    """A figure's mean over training seeds; its interval is the envelope of the seeds' own 95 % intervals."""
    intervals = [cell[part][key] if part else cell[key] for cell in cells]
    return mean(i[0] for i in intervals), min(i[1] for i in intervals), max(i[2] for i in intervals)
