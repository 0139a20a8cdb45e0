"""Tests of paired differences, and their correction where several metrics are tested.

The null hypothesis is that a difference is as likely to be +d as −d.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from selfnpo_core.evaluation.intervals import Z95
from selfnpo_core.system.extras import need

EXACT = 16
"""Up to so many differences that are not 0, all 2ⁿ choices of signs are counted."""


def sign_test(differences: Tensor) -> float:
    """Two-sided p of the exact binomial test that positive and negative differences (n,) are equally likely.

    Zeros are left out (Dixon and Mood 1946).
    """
    need("evaluate", "scipy")
    from scipy.stats import binomtest  # takes a second, of which most commands have no use

    positive, negative = int((differences > 0).sum()), int((differences < 0).sum())
    return float(binomtest(positive, positive + negative).pvalue) if positive + negative else 1.0


def permutation_test(differences: Tensor, *, generator: torch.Generator, repeats: int = 9999) -> float:
    """Two-sided p of the mean of paired differences (n,) when their signs are drawn at random (Fisher 1935).

    Exact up to `EXACT` differences; else (1 + as extreme)/(1 + repeats), which is never 0 (Phipson and Smyth 2010).
    Not SciPy's: its signs come from another generator, and published p-values would change.
    """
    d = differences.double()
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    least = abs(d.sum().item()) * (1 - 1e-12)  # equal sums may be rounded differently
    if len(d) <= EXACT:
        bits = torch.arange(2 ** len(d))[:, None] >> torch.arange(len(d)) & 1
        return float(((bits * 2 - 1).double() @ d).abs().ge(least).double().mean())
    extreme, left = 0, repeats
    while left > 0:
        signs = torch.randint(2, (min(left, 256), len(d)), generator=generator) * 2 - 1
        extreme += int((signs.double() @ d).abs().ge(least).sum())
        left -= len(signs)
    return (1 + extreme) / (1 + repeats)


def normal_test(value: float, standard_error: float) -> float:
    """Two-sided p of a value that is normal around 0 under the null hypothesis; `math.erfc` is all it needs."""
    if standard_error == 0:
        return 1.0 if value == 0 else 0.0
    return math.erfc(abs(value / standard_error) / math.sqrt(2))


def interval_test(interval: Sequence[float], neutral: float = 0.0) -> float:
    """Two-sided p of a normal estimate (value, low, high), with its 95 % interval, against `neutral`."""
    value, low, high = interval
    return normal_test(value - neutral, (high - low) / 2 / Z95)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: each is at most α with the family-wise error kept at α (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
