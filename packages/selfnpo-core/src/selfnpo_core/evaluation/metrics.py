"""Figures with intervals, and paired tests against another arm, from what networks said of samples.

Every metric but a distance has a value a row, of a sample or (recall, coverage) of a reference sample, so that two arms
are compared row by row. A distance is compared by drawing pairs anew (`bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.distances import (
    Moments,
    extrapolate,
    frechet_to,
    kernel_terms,
    manifold_covered,
    manifold_hits,
    manifold_radii,
)
from selfnpo_core.evaluation.intervals import Z95, Interval, bootstrap, wilson, win_rate
from selfnpo_core.evaluation.networks import Network
from selfnpo_core.evaluation.significance import holm, interval_test, permutation_test, sign_test

Kind = Literal["score", "proportion", "frechet", "kernel", "precision", "recall", "density", "coverage"]
Better = Literal["higher", "lower", "neither"]
NEIGHBOURS: Mapping[str, int] = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
"""k, as the papers have it: 1904.06991 and 2002.09797."""
REPEATS = {"mean": 500, "frechet": 50}
"""Resamples; a Fréchet distance of 2,048 features takes seconds."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure that results have by its name."""

    name: str
    kind: Kind
    network: Network
    better: Better = "higher"

    @property
    def needs_reference(self) -> bool:
        return self.kind not in ("score", "proportion")


def check_counts(metric: Metric, samples: int, reference: int | None) -> None:
    """Raises `InputError` where there are too few. reference: None where real data is known by its moments only."""
    if metric.needs_reference:
        least = NEIGHBOURS.get(metric.kind, 1) + 1
        for name, count in (("samples", samples), ("reference samples", reference)):
            if count is not None and count < least:
                raise InputError(f"{metric.name} needs {least} {name} or more, got {count}: draw more, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real data, as a network sees it: features (n, d), or no more than their moments."""

    features: Tensor | None
    moments: Moments


def manifold_metrics(network: Network) -> list[Metric]:
    """Precision, recall, density and coverage of a network's features."""
    kinds: tuple[Kind, ...] = ("precision", "recall", "density", "coverage")
    return [Metric(name=kind, kind=kind, network=network) for kind in kinds]


def measure(metric: Metric, one: Tensor, other: Tensor | None, reference: Reference | None) -> dict[str, Any]:
    """Figures of an arm, and of another at the same prompts and seeds. one, other: what the network said, (n, …).

    "value" and "against" are the arms' figures, "change" is the first's minus the other's, "p" tells whether it is 0.
    """
    found: dict[str, Any] = {"better": metric.better, "count": len(one)}
    if metric.kind == "frechet":
        assert reference is not None
        return found | _frechet(_features(metric, one), other if other is None else _features(metric, other), reference)
    if metric.kind == "kernel":
        return found | _kernel(metric, one, other, reference)
    values = rows_of(metric, one, reference)
    against = None if other is None else rows_of(metric, other, reference)
    found["count"] = len(values)
    found["value"] = _mean(metric, values)
    if against is not None:
        found |= {"against": _mean(metric, against), **paired(values, against)}
    return found


def per_sample(metric: Metric, said: Tensor) -> list[float] | None:
    """Each sample's own score to six digits, where the metric is one; None of a distance or a share of a reference."""
    if metric.kind not in ("score", "proportion"):
        return None
    return [float(f"{value:.6g}") for value in rows_of(metric, said, None).tolist()]


def paired(one: Tensor, other: Tensor) -> dict[str, Any]:
    """What two arms' values (n,) of the same rows say of their difference, one − other."""
    d = (one - other).double()
    generator = torch.Generator().manual_seed(0)
    change = bootstrap(lambda rows: d[rows].mean().item(), len(d), generator=generator, repeats=REPEATS["mean"])
    return {
        "change": change,
        "win_rate": win_rate(one, other),
        "wins": int((d > 0).sum()),
        "ties": int((d == 0).sum()),
        "losses": int((d < 0).sum()),
        "sign_test_p": sign_test(d),
        "p": permutation_test(d, generator=generator),
        "test": "paired permutation",
    }


def adjust(figures: Mapping[str, dict[str, Any]]) -> None:
    """Put Holm's "p_holm" beside every "p", all metrics being one family."""
    tested = [found for found in figures.values() if "p" in found]
    for found, p in zip(tested, holm([found["p"] for found in tested]), strict=True):
        found["p_holm"] = p


def rows_of(metric: Metric, said: Tensor, reference: Reference | None) -> Tensor:
    """The metric's value of every row, (n,) float64."""
    if not metric.needs_reference:
        return said[:, metric.network.columns.index(metric.name)].double()
    made, real, k = _features(metric, said), _real(reference), NEIGHBOURS[metric.kind]
    if metric.kind == "recall":
        return (manifold_hits(real, made, manifold_radii(made, k)) > 0).double()
    radii = manifold_radii(real, k)
    if metric.kind == "coverage":
        return manifold_covered(real, radii, made).double()
    hits = manifold_hits(made, real, radii)
    return (hits > 0).double() if metric.kind == "precision" else hits.double() / k


def _features(metric: Metric, said: Tensor) -> Tensor:
    return said[:, len(metric.network.columns) :]


def _real(reference: Reference | None) -> Tensor:
    assert reference is not None
    assert reference.features is not None
    return reference.features


def _mean(metric: Metric, values: Tensor) -> Interval:
    if metric.kind in ("proportion", "precision", "recall", "coverage"):
        return wilson(values.sum().item(), len(values))
    generator = torch.Generator().manual_seed(0)
    return bootstrap(lambda rows: values[rows].mean().item(), len(values), generator=generator, repeats=REPEATS["mean"])


def _frechet(one: Tensor, other: Tensor | None, reference: Reference) -> dict[str, Any]:
    """The intervals are of sampling only: a distance's bias is in its limit for n → ∞, given beside it."""
    arms, moments, count = [one] if other is None else [one, other], reference.moments, len(one)
    with tqdm(desc="Fréchet distance", unit="draw", leave=False, mininterval=1) as bar:

        def distance_of(arm: Tensor) -> Callable[[Tensor], float]:
            return _remembered(lambda rows: frechet_to(moments, arm[rows]), bar)

        def resampled(statistic: Callable[[Tensor], float]) -> Interval:
            """The same rows every time, so that each arm's distance of them is computed once."""
            generator = torch.Generator().manual_seed(0)
            return bootstrap(statistic, count, generator=generator, repeats=REPEATS["frechet"])

        def limit(distance: Callable[[Tensor], float]) -> dict[str, Any] | None:
            generator = torch.Generator().manual_seed(1)
            found = extrapolate(distance, count, smallest=one.shape[1] + 1, generator=generator)
            return None if found is None else asdict(found)

        distances = [distance_of(arm) for arm in arms]
        values, limits = [resampled(each) for each in distances], [limit(each) for each in distances]
        found: dict[str, Any] = {"value": values[0], "limit": limits[0], "reference_count": moments.count}
        if len(arms) == 2:
            change = resampled(lambda rows: distances[0](rows) - distances[1](rows))
            p = interval_test(change)
            found |= {"against": values[1], "against_limit": limits[1], "change": change, "p": p, "test": "bootstrap"}
    return found


def _remembered(distance: Callable[[Tensor], float], bar: tqdm[Any]) -> Callable[[Tensor], float]:
    known: dict[bytes, float] = {}

    def remembered(rows: Tensor) -> float:
        key = rows.numpy().tobytes()
        if key not in known:
            known[key] = distance(rows)
            bar.update()
        return known[key]

    return remembered


def _kernel(metric: Metric, one: Tensor, other: Tensor | None, reference: Reference | None) -> dict[str, Any]:
    """Unbiased at every n. The interval is of its first-order standard error."""
    real = _real(reference)
    value, terms = kernel_terms(_features(metric, one), real)
    found: dict[str, Any] = {"value": _around(value, terms), "reference_count": len(real)}
    if other is not None:
        value_other, terms_other = kernel_terms(_features(metric, other), real)
        change = _around(value - value_other, terms - terms_other)
        p = interval_test(change)
        found |= {"against": _around(value_other, terms_other), "change": change, "p": p, "test": "standard error"}
    return found


def _around(value: float, terms: Tensor) -> Interval:
    half = Z95 * 2 * terms.std().item() / len(terms) ** 0.5
    return Interval(value, value - half, value + half)


def cautions(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What must be known of distances of few samples."""
    told = []
    for name, found in figures.items():
        if "limit" in found and found["limit"] is None:
            told.append(f"{name} of {found['count']} samples is mostly bias, and no limit can be told: draw more")
        limits = [found[key]["infinity"] for key in ("limit", "against_limit") if found.get(key)]
        if limits and min(limits) < 0:
            told.append(f"{name} extrapolates to less than 0, which cannot be: {found['count']} samples are too few")
    return told


def table(figures: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the printed table."""
    arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
    compared = any("against" in found for found in figures.values())
    head: tuple[str, ...] = ("metric", "value")
    rows = []
    if compared:
        head += ("against", "change", "win rate", "p", "p (Holm)")
    for name, found in figures.items():
        row: Sequence[str] = (name + arrows[found["better"]], str(found["value"]))
        if compared:
            wins = found.get("win_rate")
            cells = (found["against"], found["change"], "—" if wins is None else wins)
            row = (*row, *map(str, cells), f"{found['p']:.3g}", f"{found['p_holm']:.3g}")
        rows.append(tuple(row))
        limit = found.get("limit")
        if limit is not None:
            after = found.get("against_limit")
            more = () if not compared else (f"{after['infinity']:.3g}" if after else "—", "", "", "", "")
            rows.append((f"  {name}, n → ∞", f"{limit['infinity']:.3g}", *more))
    return head, rows
