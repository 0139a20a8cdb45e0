"""The page of a protocol's second set: what each method's point is against plain guidance, its controls, the frontier.

folder/README.md, folder/frontier.png, and folder/claims.json with the same figures and the hashes of all weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.experiments.claims import AGAINST, AGAINST_EQUAL, AGAINST_WHOLE, Claim, Found, compare, found
from selfnpo_core.experiments.controls import CONTROLS
from selfnpo_core.experiments.measure import real_features, resampled
from selfnpo_core.experiments.methods import METHODS
from selfnpo_core.experiments.pareto import INK, about, name, setting
from selfnpo_core.experiments.protocol import CHOOSE, CLAIM, REAL, Cell, Protocol
from selfnpo_core.experiments.report import bounds, percent
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.system.extras import pyplot
from selfnpo_core.system.files import write_text
from selfnpo_core.worlds.world import Demo, World

Interval = Sequence[float]


def write_frontier_page(demo: Demo, protocol: Protocol, folder: Path, command: str, pipe: Any) -> str:
    """The page, which is returned. command: what made the cells. pipe: the demo's, whose weights are hashed."""
    world, count = demo.world, len(protocol.claim.task.prompts)
    real = resampled(world, real_features(world, count, REAL))
    compare(protocol, real)
    least, known = real[0].item(), found(protocol)
    plot(known, world, folder / "frontier.png", title=demo.title, real=least)
    told = {
        "schema": 1,
        "samples": count,
        "sets": {"choose": CHOOSE, "claim": CLAIM, "real": REAL},
        "training_seeds": list(protocol.seeds),
        "real": least,
        "weights": hashes(world, pipe),
        "claims": [fact for budget, one in known.items() for fact in facts(budget, one, world)],
    }
    write_text(folder / "claims.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    page = _PAGE.format(
        title=demo.title[0].upper() + demo.title[1:],
        about=demo.about,
        command=command,
        unit=world.unit,
        distance=world.distance.upper(),
        first=f"{len(protocol.choose.task.prompts):,}",
        count=f"{count:,}",
        real=f"{least:.{1 if least >= 10 else 2}f}",
        reference=f"{world.judges.reference.count:,}",
        seeds=", ".join(map(str, protocol.seeds)),
        methods="\n".join(about(method) for method in protocol.methods),
        sections="\n\n".join(section(budget, one, world) for budget, one in known.items()),
    )
    write_text(folder / "README.md", page)
    return page


def hashes(world: World, pipe: Any) -> dict[str, str]:
    """sha256 of the weights that draw and of those that judge."""
    judges = world.judges
    networks = {"denoiser": world.denoiser(pipe), "oracle": judges.oracle, "preference": judges.preference}
    return {key: weights_hash(network) for key, network in networks.items()}


def facts(budget: int, known: Found, world: World) -> list[dict[str, Any]]:
    """The claims of one budget, for JSON."""
    return [
        {
            **{key: claim.cells[0][key] for key in ("method", "variant", "scale", "steps")},
            "budget": budget,
            "training_seeds": [cell["training_seed"] for cell in claim.cells if "training_seed" in cell],
            "npo_sha256": [cell["npo_sha256"] for cell in claim.cells if "npo_sha256" in cell],
            "plain_scale": claim.base["scale"],
            **{key: claim.mean(key) for key in (world.distance, "accuracy")},
            AGAINST: {key: claim.mean(key, AGAINST) for key in figures(claim, AGAINST)},
            "effective_scale": claim.effective_scale,
            AGAINST_EQUAL: {key: claim.mean(key, AGAINST_EQUAL) for key in figures(claim, AGAINST_EQUAL)} or None,
            "missed": claim.missed(world),
        }
        for claim in known.claims
    ]


def figures(claim: Claim, versus: str) -> list[str]:
    """What a comparison holds besides what it is with."""
    return [key for key in claim.cells[0].get(versus) or {} if key not in ("arm", "scale")]


def section(budget: int, known: Found, world: World) -> str:
    parts = [f"## {budget} rows a {world.unit}", "\n".join(words(known, world)), table(known, world)]
    if known.controls:
        parts += ["### What is left of it without its parts", controls(known, world)]
    elif any(METHODS[claim.method].weights for claim in known.claims):
        parts += ["The controls are not drawn: how much of this one part of the change makes is not said here."]
    if missing := [name for name in CONTROLS if known.controls and name not in {c["control"] for c in known.controls}]:
        parts += [f"Not drawn: {', '.join(missing).replace('_', ' ')}."]
    return "\n\n".join(parts)


def words(known: Found, world: World) -> list[str]:
    """One line for plain guidance, one for each claim."""
    key, base = world.distance, known.base
    lines = [
        f"- Plain guidance at its best on this set, scale {base['scale']:g}, which is in its favour: {key.upper()} "
        f"{base[key][0]:.{digits(known, world)}f}, prompt accuracy {100 * base['accuracy'][0]:.1f} %."
    ]
    for claim in known.claims:
        missed = claim.missed(world)
        lines.append(
            f"- {point(claim.cells[0])}: "
            + ("**what was asked for is met**." if not missed else f"not met: {'; '.join(missed)}.")
        )
    if known.without:
        left = ", ".join(map(name, known.without))
        lines.append(f"- No point as accurate as plain guidance's on the first set: {left}.")
    return lines


def point(cell: Cell) -> str:
    settings = setting(cell)
    return name(cell["method"]) + (f" ({settings})" if settings else "") + f" at {cell['scale']:g}"


def table(known: Found, world: World) -> str:
    """One line a claim: its mean over training seeds, and the envelope of their intervals."""
    key = world.distance
    head = (
        *("method", "steps", "seeds", f"{key.upper()} ↓", "change", "excess, of plain's ↓", "prompt accuracy ↑, %"),
        *("change, points", "win rate, %", "against equal scale: scale", f"{key.upper()} change", "win rate, %"),
    )
    moving = "motion" in known.base
    lines = [_row([*head, *(["motion, of plain's"] if moving else [])]), _row(["---"] * (len(head) + moving))]
    for claim in known.claims:
        equal = claim.effective_scale
        versus = [claim.mean(f"{key}_change", AGAINST_EQUAL), claim.mean("win_rate", AGAINST_EQUAL)] if equal else []
        row = [
            point(claim.cells[0]),
            str(claim.cells[0]["steps"]),
            str(len(claim.cells)) if METHODS[claim.method].untrained else "—",
            bounds(claim.mean(key), digits(known, world)),
            _signed(claim.mean(f"{key}_change", AGAINST), digits=digits(known, world)),
            _plain(claim.mean("excess_ratio", AGAINST), 2),
            percent(claim.mean("accuracy")).replace(" %", ""),
            _signed(claim.mean("accuracy_change", AGAINST), 100),
            percent(claim.mean("win_rate", AGAINST)).replace(" %", ""),
            *(
                [f"{equal:.2f}", _signed(versus[0], digits=digits(known, world)), percent(versus[1]).replace(" %", "")]
                if equal
                else ["—"] * 3
            ),
            *([_plain(claim.mean("motion_ratio", AGAINST), 2)] if moving else []),
        ]
        lines.append(_row(row))
    return "\n".join(lines)


def controls(known: Found, world: World) -> str:
    """One line a control and training seed, against plain guidance and against the negative itself."""
    key = world.distance
    head = (
        *(
            "negative",
            "control",
            "seed",
            f"{key.upper()} ↓",
            "prompt accuracy ↑, %",
            f"{key.upper()} change from plain",
        ),
        *(f"{key.upper()} change from the negative", "accuracy change from it, points", "win rate against it, %"),
    )
    lines = [_row(head), _row(["---"] * len(head))]
    for cell in known.controls:
        whole = cell[AGAINST_WHOLE]
        equal = f", {cell['effective_scale']:.2f}" if "effective_scale" in cell else ""
        row = [
            point(cell),
            cell["control"].replace("_", " ") + equal,
            str(cell["training_seed"]),
            bounds(cell[key], digits(known, world)),
            percent(cell["accuracy"]).replace(" %", ""),
            _signed(cell[AGAINST][f"{key}_change"], digits=digits(known, world)),
            _signed(whole[f"{key}_change"], digits=digits(known, world)),
            _signed(whole["accuracy_change"], 100),
            percent(whole["win_rate"]).replace(" %", ""),
        ]
        lines.append(_row(row))
    return "\n".join(lines)


def _row(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"


def digits(known: Found, world: World) -> int:
    """Behind the point of a distance."""
    return 1 if known.base[world.distance][0] >= 10 else 2


def _signed(interval: Interval, factor: float = 1, digits: int = 1) -> str:
    value, low, high = (round(factor * v, digits) + 0.0 for v in interval)
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _plain(interval: Interval, digits: int) -> str:
    value, low, high = interval
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def plot(known: Mapping[int, Found], world: World, path: Path, *, title: str, real: float) -> None:
    """Distance against prompt accuracy on the second set, a column a budget.

    Plain guidance at every scale is a line, each method's point of every training seed has its 95 % intervals. real:
    distance of real samples.
    """
    if not known:
        raise InputError("there is nothing to plot: draw the cells first")
    plt = pyplot()
    size = (6.2 * len(known) + 2.4, 5.6)
    figure, axes = plt.subplots(1, len(known), figsize=size, layout="constrained", squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for axis, (budget, one) in zip(axes[0], known.items(), strict=True):
        _curves(axis, one.plain, world)
        for claim in one.claims:
            _errorbars(axis, claim.cells, world, METHODS[claim.method].title)
        axis.axhline(real, color="grey", ls=":", lw=1, label=f"real {world.unit}s")
        axis.set_title(f"{budget} rows a {world.unit}")
        axis.set_xlabel("prompt accuracy, % → better")
        axis.grid(alpha=0.3)
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0, 0].set_ylabel(f"{world.distance.upper()} ↓ better")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(axis: Any, cells: Sequence[Cell], world: World) -> None:
    """Plain guidance, its scales in their order."""
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = sorted((cell for cell in cells if cell["method"] == method), key=lambda cell: cell["scale"])
        x, y = [100 * cell["accuracy"][0] for cell in own], [cell[world.distance][0] for cell in own]
        colour, marker = INK[method]
        axis.plot(x, y, color=colour, marker=marker, lw=1.5, label=METHODS[method].title)
        for cell, *place in zip(own, x, y, strict=True):
            axis.annotate(f"{cell['scale']:g}", place, (4, 4), textcoords="offset points", size=7, color=colour)


def _errorbars(axis: Any, cells: Sequence[Cell], world: World, label: str) -> None:
    colour, marker = INK[cells[0]["method"]]
    for cell in cells:
        (x, *xs), (y, *ys) = [100 * v for v in cell["accuracy"]], cell[world.distance]
        errors = {"xerr": [[x - xs[0]], [xs[1] - x]], "yerr": [[y - ys[0]], [ys[1] - y]]}
        axis.errorbar(x, y, **errors, color=colour, marker=marker, ms=7, elinewidth=0.8, ls="", label=label)


_PAGE = """# Claimed: {title}

A toy: the shipped model draws {about}. These figures compare ways of sampling it, and say nothing of the size of an
effect on real models. Made by `{command}`; the protocol stands in docs/results/protocol.md, every row is a file in
`claim/cells/`, and `claims.json` has the figures with the hashes of all weights.

Each method's scale and setting were picked on one set of {first} prompts ([all of its cells](choose/README.md)), and
are measured here on {count} others. Within a budget all run the same number of rows through the denoiser for each
{unit}, but for a part of a step; controls have the steps of what they control for. {distance} is the Fréchet distance
of the oracle's features to those of {reference} real {unit}s; that of {count} other real {unit}s is {real}, and an
excess is what a distance is above it. Prompt accuracy means that everything a caption names is right; the win rate is
that of the shipped preference judge. Trained weights are of training seeds {seeds}: means over them, and the envelope
of their 95 % intervals.

![{distance} against prompt accuracy](frontier.png)

{methods}

{sections}
"""
