"""How much raters agree beyond chance: Krippendorff's alpha for categories, any number of raters, ratings missing.

Of a unit u with m_u ≥ 2 ratings, every ordered pair of ratings by two raters adds 1/(m_u − 1) to the coincidences o_ck
of their categories. With n_c = Σ_k o_ck and n = Σ_c n_c
    α = 1 − D_o/D_e,   D_o = Σ_{c≠k} o_ck / n,   D_e = Σ_{c≠k} n_c n_k / (n (n − 1))
1 is full agreement, 0 what chance gives, below 0 is disagreement by system. (Krippendorff, Computing Krippendorff's
Alpha-Reliability, 2011.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """units: of each thing that was rated, the categories it was given, one a rater who rated it.

    None where alpha is not defined: no unit has two ratings, or all ratings are of one category.
    """
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for ratings in units:
        if len(ratings) < 2:
            continue
        counts = Counter(ratings)
        for c, count_c in counts.items():
            for k, count_k in counts.items():
                coincidences[c, k] += count_c * (count_k - (c == k)) / (len(ratings) - 1)  # type: ignore[assignment]
    totals: Counter[Hashable] = Counter()
    for (c, _), value in coincidences.items():
        totals[c] += value
    n = sum(totals.values())
    observed = sum(value for (c, k), value in coincidences.items() if c != k)
    expected = n * n - sum(value * value for value in totals.values())
    return 1 - (n - 1) * observed / expected if expected > 0 else None
