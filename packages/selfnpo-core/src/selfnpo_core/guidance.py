"""Guidance: away from one prediction, towards and beyond another.

    guide(negative, positive, scale) = negative + scale·(positive − negative)

scale = 1 is no guidance, as in diffusers (classifier-free guidance, 2207.12598). A weak guidance w
counts from the conditional prediction, x̂(w) = x̂(c) + w·(x̂(c) − x̂(∅)), so scale = 1 + w. w > 0 is
ordinary guidance, w = 0 the conditional prediction, w = −1 the unconditional one; w < −1 points away
from the prompt (2505.11777).

Prompts are indices, `prompt: (B,)` int64, into a table that the denoiser owns; `NULL` is the null prompt.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.prediction import Estimate

Knots = Sequence[tuple[float, float]]
"""A strength by noise level, as (σ/α, share): linear in log σ/α between them and constant outside."""

NULL = -1
"""Index of the null prompt."""

Denoise = Callable[[Tensor, Tensor, Tensor], Estimate]
"""(x_t: (B, *S), t: (B,), prompt: (B,) int64) → Estimate."""


@overload
def guide(negative: Tensor, positive: Tensor, scale: float) -> Tensor: ...


@overload
def guide(negative: Estimate, positive: Estimate, scale: float) -> Estimate: ...


def guide(negative: Tensor | Estimate, positive: Tensor | Estimate, scale: float) -> Tensor | Estimate:
    """negative + scale·(positive − negative), for tensors or for both halves of an `Estimate`."""
    if isinstance(negative, Estimate) and isinstance(positive, Estimate):
        return Estimate(guide(negative.x0, positive.x0, scale), guide(negative.eps, positive.eps, scale))
    assert isinstance(negative, Tensor)
    assert isinstance(positive, Tensor)
    return negative + scale * (positive - negative)


def guided_estimate(denoise: Denoise, x_t: Tensor, t: Tensor, prompt: Tensor, w: float) -> Estimate:
    """The estimate under weak guidance w, without the forwards that cancel.

    w = 0 and w = −1 cost one forward of B rows, every other w one forward of 2B rows: [null, prompt].
    """
    if w == 0:
        return denoise(x_t, t, prompt)
    if w == -1:
        return denoise(x_t, t, torch.full_like(prompt, NULL))
    return guide(*both_branches(denoise, x_t, t, prompt), 1 + w)


def both_branches(denoise: Denoise, x_t: Tensor, t: Tensor, prompt: Tensor) -> tuple[Estimate, Estimate]:
    """The estimates under the null prompt and under the prompt, by one forward of 2B rows."""
    null = torch.full_like(prompt, NULL)
    both = denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([null, prompt]))
    (x0_null, x0_prompt), (eps_null, eps_prompt) = both.x0.chunk(2), both.eps.chunk(2)
    return Estimate(x0_null, eps_null), Estimate(x0_prompt, eps_prompt)


def check_knots(knots: Knots) -> None:
    """σ/α positive, finite and never falling. Two knots may stand at one σ/α, which is a jump."""
    levels = [level for level, _ in knots]
    if not knots or not all(math.isfinite(number) for knot in knots for number in knot) or levels[0] <= 0:
        raise InputError(f"knots {list(knots)} are not pairs of a noise level σ/α > 0 and a finite share: give such")
    if levels != sorted(levels):
        raise InputError(f"knots are at the noise levels {levels}, which must not fall: sort them")


def share_at(knots: Knots, level: float) -> float:
    """The share at σ/α = level, which may be 0 or infinite. At a jump it is the one from below."""
    right = bisect_left([at for at, _ in knots], level)
    if right in (0, len(knots)):
        return knots[0 if right == 0 else -1][1]
    (low, before), (high, after) = knots[right - 1], knots[right]
    return before + (after - before) * math.log(level / low) / math.log(high / low)


def interval(low: float, high: float) -> tuple[tuple[float, float], ...]:
    """The whole strength where low < σ/α ≤ high (2404.07724), none outside."""
    return ((low, 0.0), (low, 1.0), (high, 1.0), (high, 0.0))
