"""Many comparisons at once: p-values of intervals, and Holm's correction for how many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from selfnpo_core.evaluation.intervals import Z95


def p_value(interval: Sequence[float], neutral: float = 0.0) -> float:
    """Two-sided, of a normal estimate (value, low, high) with its 95 % interval, against `neutral`."""
    value, low, high = interval
    return normal_p_value(value - neutral, (high - low) / (2 * Z95))


def normal_p_value(difference: float, error: float) -> float:
    """Two-sided, of a difference with a standard error. No difference without an error is no evidence."""
    if difference == 0:
        return 1.0
    return math.erfc(abs(difference) / (error * math.sqrt(2))) if error > 0 else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): rejecting those under α errs in any of them with a chance of at most α.

    The k-th smallest of m is multiplied by m − k + 1, and none is less than one before it.
    """
    count, running = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
