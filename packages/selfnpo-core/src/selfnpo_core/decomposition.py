"""What a negative model changes, taken apart: contrast, guidance scale, and what neither of them does.

At a place x_t of a sampling trajectory, all in x̂0-space:

    Δ = x̂0[θ_neg](∅) − x̂0[θ](∅)      what the negative weights change in the null branch
    d = x̂0[θ](c) − x̂0[θ](∅)          the direction of guidance
    m = x̂0[θ](∅) − its mean           contrast; the mean is over positions (of clips, frames too), a row and a channel
    Δ = κ·m + k·d + r                 κ and k: the least ‖r‖², over all elements of all rows at this noise level

κ is a knob of contrast: κ < 0 flattens the null prediction. k is a knob of guidance scale: with k alone, guidance of
scale g on the negative weights is plain guidance of scale ω_e,

    (x̂(∅) + k·d) + g·(x̂(c) − (x̂(∅) + k·d)) = x̂(∅) + ω_e·d,     ω_e = g − (g − 1)·k

so r alone can be something that plain guidance of another scale is not (the null branch of 2505.11777; comparison at an
equal effective scale: 2602.22570). κ and k solve the normal equations, with ⟨·,·⟩ over elements and rows:

    ⟨m,m⟩·κ + ⟨m,d⟩·k = ⟨m,Δ⟩        ⟨m,d⟩·κ + ⟨d,d⟩·k = ⟨d,Δ⟩        ‖r‖² = ‖Δ‖² − κ·⟨m,Δ⟩ − k·⟨d,Δ⟩

These products are all that is kept of the predictions, and those of further rows are added to them.
Shapes: predictions (B, *S), channels being the third dimension from the end: (B, C, H, W), (B, F, C, H, W).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHANNEL = -3
"""Of latents: (B, C, H, W) and (B, F, C, H, W)."""
SAME = 1e-10
"""Ratio of eigenvalues of the cosines' matrix below which m and d are one direction, which both knobs then share."""


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """size: ‖Δ‖/‖d‖. Shares are of ‖Δ‖²: what κ·m fits alone, what k·d fits alone, and ‖r‖² of both together.

    m and d are not orthogonal, so the three need not sum to one. Where Δ = 0 all are zero.
    """

    size: float
    kappa: float
    k: float
    contrast_share: float
    scale_share: float
    rest_share: float

    def effective_scale(self, guidance_scale: float) -> float:
        """ω_e = g − (g − 1)·k."""
        return guidance_scale - (guidance_scale - 1) * self.k


_UNKNOWN = Decomposition(
    size=math.nan, kappa=math.nan, k=math.nan, contrast_share=math.nan, scale_share=math.nan, rest_share=math.nan
)


def contrast(x0: Tensor) -> Tensor:
    """m: x0: (B, *S) without its mean over positions, of each row and channel."""
    assert x0.ndim >= 4, f"(B, C, H, W) or (B, F, C, H, W), not {tuple(x0.shape)}"
    positions = [n for n in range(1, x0.ndim) if n != x0.ndim + CHANNEL]
    return x0 - x0.mean(positions, keepdim=True)


def inner_products(positive: Tensor, empty: Tensor, negative: Tensor) -> Tensor:
    """Of m, d and Δ with each other: (3, 3), float64.

    positive: x̂0[θ](c), empty: x̂0[θ](∅), negative: x̂0[θ_neg](∅), each (B, *S).
    """
    positive, empty, negative = positive.double(), empty.double(), negative.double()
    vectors = torch.stack([contrast(empty), positive - empty, negative - empty]).flatten(1)
    return vectors @ vectors.T


def decompose(products: Tensor) -> Decomposition:
    """From the `inner_products` of one noise level, or a sum of them."""
    if not bool(products.isfinite().all()):
        return _UNKNOWN
    change = float(products[2, 2])
    # Scaled to unit length first: m and d may differ in size by much, and either may be zero.
    lengths = products.diagonal()[:2].sqrt()
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    cosines = products[:2, :2] * inverse[:, None] * inverse
    knobs = inverse * (torch.linalg.pinv(cosines, rtol=SAME, hermitian=True) @ (products[:2, 2] * inverse))
    rest = change - float(knobs @ products[:2, 2])
    alone = (products[:2, 2] * inverse).square()
    of_change = 1 / change if change > 0 else 0.0
    return Decomposition(
        size=math.sqrt(change / float(products[1, 1])) if products[1, 1] > 0 else math.inf if change > 0 else 0.0,
        kappa=float(knobs[0]),
        k=float(knobs[1]),
        contrast_share=float(alone[0]) * of_change,
        scale_share=float(alone[1]) * of_change,
        rest_share=min(max(rest * of_change, 0.0), 1.0),  # beyond these by rounding only
    )


def decompose_all(products: Sequence[Tensor]) -> Decomposition:
    """Of all noise levels, from the `inner_products` of each.

    size, κ and k are those of all elements together: one pair of knobs for all levels. Shares let the knobs turn from
    level to level, as a schedule of guidance scales could: Σ‖r‖²/Σ‖Δ‖², and likewise the two others. So r is what no
    knob does at any level.
    """
    whole, levels = decompose(torch.stack(list(products)).sum(0)), [decompose(each) for each in products]
    weights = [float(each[2, 2]) for each in products]
    total = sum(weights)

    def mean(shares: Sequence[float]) -> float:
        return sum(w * share for w, share in zip(weights, shares, strict=True)) / total if total else 0.0

    return Decomposition(
        size=whole.size,
        kappa=whole.kappa,
        k=whole.k,
        contrast_share=mean([level.contrast_share for level in levels]),
        scale_share=mean([level.scale_share for level in levels]),
        rest_share=mean([level.rest_share for level in levels]),
    )
