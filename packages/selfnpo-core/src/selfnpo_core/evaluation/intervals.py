"""95 % intervals: Wilson's for a proportion, bootstrap for anything computed from paired rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Z95 = 1.959963984540054


class Interval(NamedTuple):
    """A value with its lower and upper bound."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def wilson(successes: float, count: int, z: float = Z95) -> Interval:
    """Wilson's score interval for a proportion (1927); `successes` may hold half points for ties, unlike SciPy's."""
    if count <= 0 or not 0 <= successes <= count:
        raise ValueError(f"need 0 <= successes <= count and count > 0, got {successes} of {count}")
    p = successes / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def win_rate(scores_a: Tensor, scores_b: Tensor, tie: float = 0.0) -> Interval:
    """How often a's score (n,) beats b's at the same row; differences up to `tie` count one half each way."""
    if scores_a.shape != scores_b.shape:
        raise ValueError(f"paired scores differ in shape: {tuple(scores_a.shape)} and {tuple(scores_b.shape)}")
    difference = scores_a - scores_b
    wins = (difference > tie).sum().item() + 0.5 * (difference.abs() <= tie).sum().item()
    return wilson(wins, difference.numel())


def bootstrap(
    statistic: Callable[[Tensor], float], count: int, *, generator: torch.Generator, repeats: int = 200, z: float = Z95
) -> Interval:
    """Normal interval with the bootstrap's standard error, around the statistic of all rows.

    statistic: takes row indices (count,) int64 and computes the figure from those rows; called with every row once for
    the value, then with `repeats` resamples. Pairs stay together because both arms are indexed by the same rows. The
    interval is centred on the value and not on the resamples, whose Fréchet distances are biased upwards (Efron 1979).
    SciPy's bootstrap has no such interval, and draws other rows.
    """
    value = statistic(torch.arange(count))
    draws = torch.tensor(
        [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(repeats)], dtype=torch.float64
    )
    return interval_around(value, draws, z)


def interval_around(value: float, draws: Tensor, z: float = Z95) -> Interval:
    """`bootstrap`'s interval of what is computed already: draws: (repeats,), of resamples."""
    half = z * draws.double().std().item()
    return Interval(value, value - half, value + half)


def bootstrap_crossed(
    scores: Tensor, *, generator: torch.Generator, repeats: int = 1000, z: float = Z95
) -> Interval | None:
    """Normal interval of a mean over raters and items, both of which are a sample of many.

    scores: (R, I), NaN where a rater did not score an item. Raters and items are drawn anew with replacement, each on
    their own, and a score counts as often as its rater times its item was drawn (Owen, The pigeonhole bootstrap, Ann.
    Appl. Stat. 1, 2007): scores of one rater, or of one item, are not independent. A single rater, or item, stays.
    None where there is no score, or where all are equal: their resamples cannot tell how sure that is.
    """
    there = ~scores.isnan()
    if not there.any() or (scores[there] == scores[there][0]).all():
        return None
    weights = [_drawn(size, repeats, generator) for size in scores.shape]
    sums, counts = (
        torch.einsum("nr,ri,ni->n", weights[0], table.double(), weights[1]) for table in (scores.nan_to_num(), there)
    )
    drawn = counts > 0
    value, half = scores[there].mean().item(), z * (sums[drawn] / counts[drawn]).std().item()
    return Interval(value, value - half, value + half)


def _drawn(count: int, repeats: int, generator: torch.Generator) -> Tensor:
    """How often each of `count` was drawn, (repeats, count) float64."""
    picked = torch.randint(count, (repeats, count), generator=generator)
    return torch.zeros(repeats, count, dtype=torch.float64).scatter_add_(
        1, picked, torch.ones(repeats, count, dtype=torch.float64)
    )
