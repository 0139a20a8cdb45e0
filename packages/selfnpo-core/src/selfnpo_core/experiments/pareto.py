"""The page of a comparison at equal cost: tables, fronts, and what may be said of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation import holm, interval_test, normal_test
from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.equal_cost import UNTRAINED, best_plain, by_budget, check_budget, pair_up
from selfnpo_core.experiments.measure import floor
from selfnpo_core.experiments.methods import METHODS
from selfnpo_core.experiments.report import Cell, bounds, percent
from selfnpo_core.system.extras import pyplot
from selfnpo_core.system.files import write_text
from selfnpo_core.worlds.world import Demo, World

LEVEL = 0.05
INK = {
    "cfg": ("black", "o"),
    "paper": ("#cc6677", "s"),
    "ours": ("#cc3311", "s"),
    "sims": ("#332288", "p"),
    "neon": ("#ee99aa", "v"),
    "zero_star": ("#0077bb", "^"),
    "apg": ("#009988", "D"),
    "rescale": ("#33bbee", "<"),
    "interval": ("#ddaa33", ">"),
    "pag": ("#aa4499", "P"),
    "slg": ("#888888", "X"),
    "plus_plus": ("#44bb99", "h"),
    "autoguidance": ("#117733", "*"),
    "ours_prompt": ("#332288", "h"),
    "ours_third": ("#aa7744", "d"),
    "ours_switch": ("#44aa99", "p"),
    "ours_neon_both": ("#cc6677", "v"),
    "ours_interval_beta": ("#999933", "H"),
    "ours_interval": ("#ee7733", "s"),
    "ours_apg": ("#882255", "s"),
    "tuned": ("#666666", "o"),
    "tuned_ours": ("#ff9977", "s"),
}
"""Colour and marker of each method."""


def front(cells: Sequence[Cell], world: World) -> list[Cell]:
    """The cells that no other beats: none is better in one of distance and accuracy, and not worse in the other."""

    def point(cell: Cell) -> tuple[float, float]:
        return cell[world.distance][0], -cell["accuracy"][0]

    points = [point(cell) for cell in cells]
    return [
        cell
        for cell, (x, y) in zip(cells, points, strict=True)
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    ]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One cell against plain guidance: −1 worse, 0 not distinguishable, 1 better, for each figure."""

    cell: Cell
    signs: Mapping[str, int]

    @property
    def wins(self) -> bool:
        """Something is better, and nothing worse."""
        return max(self.signs.values()) > 0 and min(self.signs.values()) == 0


def findings(cells: Sequence[Cell], world: World, versus: str = "against") -> list[Finding]:
    """Every compared cell of one budget; each figure's p-values are Holm's, for as many cells as there are.

    versus: which of a cell's comparisons; `UNTRAINED` is the other.
    """
    check_budget(cells, world)
    return compared(cells, world, versus)


def compared(cells: Sequence[Cell], world: World, versus: str) -> list[Finding]:
    """`findings` of cells of any budgets: each is compared with one of its own budget."""
    others = [cell for cell in cells if cell[versus] is not None]
    distance, accuracy, wins = (
        [cell[versus][key] for cell in others] for key in (f"{world.distance}_change", "accuracy_change", "win_rate")
    )
    tied = [sqrt(0.25 / cell["samples"]) for cell in others]  # of a win rate of a half
    figures = {
        world.distance.upper(): [(-v[0], interval_test(v)) for v in distance],
        "prompt accuracy": [(v[0], interval_test(v)) for v in accuracy],
        "win rate": [(v[0] - 0.5, normal_test(v[0] - 0.5, error)) for v, error in zip(wins, tied, strict=True)],
    }
    signs: dict[str, list[int]] = {}
    for figure, values in figures.items():
        adjusted = holm([p for _, p in values])
        signs[figure] = [
            (1 if gain > 0 else -1) if p < LEVEL else 0 for (gain, _), p in zip(values, adjusted, strict=True)
        ]
    return [
        Finding(cell=cell, signs={figure: sign[k] for figure, sign in signs.items()}) for k, cell in enumerate(others)
    ]


def words(cells: Sequence[Cell], world: World) -> list[str]:
    """What the cells of one budget say, as a list: who wins, what is better and worse, who is on the front."""
    best, found = best_plain(cells, world), findings(cells, world)
    distance = world.distance.upper()
    won = [finding.cell for finding in found if finding.wins]
    winners, others = ([cell for cell in won if (cell["method"] == "cfg") == plain] for plain in (False, True))
    lines = [
        f"- Plain guidance has its least {distance} at scale {best['scale']:g}: {best[world.distance][0]:.1f}, with a "
        f"prompt accuracy of {100 * best['accuracy'][0]:.1f} %. {len(found)} other cells are compared with it."
    ]
    if winners:
        lines.append(f"- Better in something and worse in nothing: {labels(winners)}.")
    else:
        lines.append("- No other method wins: no cell of one is better in one of the three figures and worse in none.")
    if others:
        told = labels(others).capitalize()
        lines.append(f"- {told} is better in something and worse in nothing: so much comes of the choice of a scale.")
    lines += [f"- {_told(figure, found)}" for figure in (distance, "prompt accuracy", "win rate")]
    proven, ahead = {id(cell) for cell in won}, front(cells, world)
    sure = [cell for cell in ahead if id(cell) in proven]
    lines.append(
        f"- On the front by their bare figures: {labels(ahead)}. Of these "
        + (f"better than plain guidance's best beyond chance: {labels(sure)}." if sure else "none wins beyond chance.")
    )
    return lines


def _told(figure: str, found: Sequence[Finding]) -> str:
    better = [finding.cell for finding in found if finding.signs[figure] > 0]
    worse = [finding.cell for finding in found if finding.signs[figure] < 0]
    return (
        f"{figure[0].upper()}{figure[1:]} is better for {labels(better)}; worse for {labels(worse)}; "
        f"{len(found) - len(better) - len(worse)} cannot be told apart."
    )


def words_untrained(cells: Sequence[Cell], world: World) -> list[str]:
    """What trained weights change, one line a method; nothing where no cell is compared so."""
    found = findings(cells, world, UNTRAINED)
    lines = []
    for method in dict.fromkeys(finding.cell["method"] for finding in found):
        own = [finding for finding in found if finding.cell["method"] == method]
        lines.append(f"- {name(method)}: " + " ".join(_told(figure, own) for figure in own[0].signs))
    return lines


def table_untrained(cells: Sequence[Cell], world: World) -> str:
    """One line a cell of trained weights: what they change."""
    key = world.distance
    lines = [
        f"| method | setting | scale | {key.upper()} ↓ | change | prompt accuracy ↑, points | win rate, % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        if (versus := cell[UNTRAINED]) is not None:
            changes = _signed(versus[f"{key}_change"], 1), _signed(versus["accuracy_change"], 100)
            figures = bounds(cell[key], 1), *changes, percent(versus["win_rate"]).replace(" %", "")
            lines.append(f"| {name(cell['method'])} | {setting(cell)} | {cell['scale']:g} | {' | '.join(figures)} |")
    return "\n".join(lines)


def labels(cells: Iterable[Cell]) -> str:
    """ "Self-NPO (beta 0.5) at 2 and 3, APG at 5", or "none"."""
    scales: dict[str, list[str]] = {}
    for cell in cells:
        settings = setting(cell)
        title = name(cell["method"]) + (f" ({settings})" if settings else "")
        scales.setdefault(title, []).append(f"{cell['scale']:g}")
    return ", ".join(f"{title} at {_and(some)}" for title, some in scales.items()) or "none"


def name(method: str) -> str:
    """A method's title, for Markdown."""
    return METHODS[method].title.replace("*", r"\*")


def setting(cell: Cell) -> str:
    """What tells a method's variants apart."""
    variants = METHODS[cell["method"]].variants
    differ = [key for key in cell["variant"] if len({variant.get(key) for variant in variants}) > 1]
    return _named({key: cell["variant"][key] for key in differ})


def about(method: str) -> str:
    """A method's line on the page, with the settings that all of its variants have."""
    variants = METHODS[method].variants
    same = {key: value for key, value in variants[0].items() if len({variant.get(key) for variant in variants}) == 1}
    return f"- {name(method)}: {METHODS[method].what}" + (f"; here {_named(same)}." if same else ".")


def _named(settings: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


def _and(some: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(some[:-1]), some[-1]]))


def table(cells: Sequence[Cell], world: World) -> str:
    """One line a cell; those on the front are in bold."""
    key, ahead = world.distance, {id(cell) for cell in front(cells, world)}
    lines = [
        f"| method | setting | scale | steps | rows a {world.unit} | {key.upper()} ↓ | change | prompt accuracy ↑, % "
        "| change, points | win rate, % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        title, versus = name(cell["method"]), cell["against"]
        title = f"**{title}**" if id(cell) in ahead else title
        paired = ["the base", "—", "—"]
        if versus is not None:
            changes = _signed(versus[f"{key}_change"], 1), _signed(versus["accuracy_change"], 100)
            paired = [*changes, percent(versus["win_rate"]).replace(" %", "")]
        lines.append(
            f"| {title} | {setting(cell)} | {cell['scale']:g} | {cell['steps']} | {cell[f'rows_per_{world.unit}']:g} "
            f"| {bounds(cell[key], 1)} | {paired[0]} | {percent(cell['accuracy']).replace(' %', '')} | {paired[1]} "
            f"| {paired[2]} |"
        )
    return "\n".join(lines)


def _signed(interval: Sequence[float], factor: float) -> str:
    value, low, high = (round(factor * v, 1) + 0.0 for v in interval)  # -0.0 + 0.0 is 0.0
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def plot(budgets: Mapping[int, Sequence[Cell]], world: World, path: Path, *, title: str, real: float) -> None:
    """Distance against prompt accuracy, a column a budget: all cells, and below them those near the front.

    A line joins the best of each method. real: distance of real data.
    """
    plt = pyplot()
    from matplotlib.ticker import ScalarFormatter

    figure, axes = plt.subplots(
        2, len(budgets), figsize=(6.2 * len(budgets) + 2.4, 10.4), layout="constrained", squeeze=False, sharey="row"
    )
    handles: dict[str, Any] = {}
    for (whole, near), (budget, cells) in zip(axes.T, budgets.items(), strict=True):
        check_budget(cells, world)
        for axis in (whole, near):
            _scatter(axis, cells, world)
            axis.axhline(real, color="grey", ls=":", lw=1, label=f"real {world.unit}s")
            handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        whole.set_yscale("log")
        for which in (whole.yaxis.set_major_formatter, whole.yaxis.set_minor_formatter):
            which(ScalarFormatter())
        whole.set_title(f"{budget} rows a {world.unit}")
        near.set_title("near the front, with the guidance scales")
        near.set_xlabel("prompt accuracy, % → better")
        _zoom(near, cells, world)
    for axis, scale in zip(axes[:, 0], (" (log)", ""), strict=True):
        axis.set_ylabel(f"{world.distance.upper()} ↓ better{scale}")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _scatter(axis: Any, cells: Sequence[Cell], world: World) -> None:
    def points(some: Sequence[Cell]) -> tuple[list[float], list[float]]:
        return [100 * cell["accuracy"][0] for cell in some], [cell[world.distance][0] for cell in some]

    for method in dict.fromkeys(cell["method"] for cell in cells):
        colour, marker = INK[method]
        own = [cell for cell in cells if cell["method"] == method]
        ahead = sorted(front(own, world), key=lambda cell: cell["accuracy"][0])
        main = method in ("cfg", "ours")
        for some, alpha in ((own, 0.35), (ahead, 1.0)):
            axis.scatter(*points(some), 36, color=colour, marker=marker, alpha=alpha, linewidths=0, zorder=3 + main)
        line = {"ms": 6, "lw": 2.4 if main else 1.2, "label": METHODS[method].title, "zorder": 3 + main}
        axis.plot(*points(ahead), color=colour, marker=marker, **line)
    axis.grid(alpha=0.3, which="both")


def _zoom(axis: Any, cells: Sequence[Cell], world: World) -> None:
    """Zoom to the front and plain guidance's best, and a little beyond."""
    shown = [*front(cells, world), best_plain(cells, world)]
    x, y = ([cell[key][0] for cell in shown] for key in ("accuracy", world.distance))
    axis.set_xlim(100 * min(x) - 2, 100 * max(x) + 0.5)
    axis.set_ylim(min(y) / 1.1, 1.2 * max(y))
    for cell in cells:
        point = 100 * cell["accuracy"][0], cell[world.distance][0]
        axis.annotate(
            f"{cell['scale']:g}",
            point,
            (4, 4),
            textcoords="offset points",
            size=7,
            color=INK[cell["method"]][0],
            annotation_clip=True,
            clip_on=True,
        )


def write_equal_cost_page(demo: Demo, drawn: Table, folder: Path, command: str) -> str:
    """folder/README.md and folder/pareto.png from folder/cells/*.json; returns the page.

    drawn: the table whose scores new comparisons are made from. command: what made the cells.
    """
    world = demo.world
    for cells in by_budget(folder / "cells").values():
        pair_up(drawn, cells)
    budgets = by_budget(folder / "cells")
    if not budgets:
        raise InputError(f"{folder / 'cells'} has no cells: draw some first")
    counts = {cell["samples"] for cells in budgets.values() for cell in cells}
    if len(counts) != 1:
        raise InputError(f"cells of {' and '.join(map(str, sorted(counts)))} samples are not for one page")
    (count,) = counts
    real = floor(world, count)
    plot(budgets, world, folder / "pareto.png", title=demo.title, real=real)
    used = dict.fromkeys(cell["method"] for cells in budgets.values() for cell in cells)
    seeds = sorted({cell["training_seed"] for cells in budgets.values() for cell in cells if "training_seed" in cell})
    missing = [name(method) for method in METHODS if method not in used]
    page = _PAGE.format(
        title=demo.title[0].upper() + demo.title[1:],
        about=demo.about,
        command=command,
        unit=world.unit,
        distance=world.distance.upper(),
        count=f"{count:,}",
        reference=f"{world.judges.reference.count:,}",
        real=f"{real:.1f}",
        seeds=f" Trained weights are of training seed {', '.join(map(str, seeds))}." if seeds else "",
        scheduler=next(iter(budgets.values()))[0]["scheduler"],
        methods="\n".join(about(method) for method in used),
        missing=f"\n\nNot in the tables: {', '.join(missing)}." if missing else "",
        sections="\n\n".join(_section(budget, cells, world) for budget, cells in budgets.items()),
    )
    write_text(folder / "README.md", page)
    return page


def _section(budget: int, cells: Sequence[Cell], world: World) -> str:
    parts = [f"## {budget} rows a {world.unit}", "\n".join(words(cells, world)), table(cells, world)]
    if alike := words_untrained(cells, world):
        parts += ["### What trained weights change", "\n".join(alike), table_untrained(cells, world)]
    return "\n\n".join(parts)


_PAGE = """# At equal cost: {title}

A toy: the shipped model draws {about}. These figures compare ways of sampling it, and say nothing of the size of an
effect on real models. Made by `{command}`; every row is a file in `cells/`.

{count} {unit}s a cell, the same prompts and seeds in every cell. Within a budget all cells run the same number of rows
through the denoiser for each {unit}, but for a part of a step: a method of three rows a step has fewer steps, one of
one row has more ({scheduler} throughout). Rows are counted in the network. {distance} is the Fréchet distance of the
oracle's features to those of {reference} real {unit}s (that of {count} other real {unit}s is {real}); prompt accuracy
means that everything a caption names is right; the win rate is that of the shipped preference judge.{seeds}

Changes and win rates are against plain guidance at the scale of its least {distance} within the same budget, pair by
pair, with 95 % intervals. "Better" and "worse" mean beyond chance at 5 % after Holm's correction of each figure for all
cells compared within the budget. That best scale was chosen on these same {unit}s, which favours plain guidance; that
each method has several settings is what the correction is for. Bold: on the front, no cell having both a lower
{distance} and a higher accuracy. What trained weights change is told against the same sampling without them too, at the
same scale and steps, with a correction for those cells.

![{distance} against prompt accuracy](pareto.png)

{methods}{missing}

{sections}
"""
