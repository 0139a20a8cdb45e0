"""The moving average of the weights in training.

average ← decay·average + (1 − decay)·student

As the paper's teacher its decay is constant. As what is kept of a training it is a power function of the update
(2312.02696, "Power function EMA profile"): the average of update n weighs update t by t^γ, so it spans the same share
of all updates however many there are, and does not depend on how many there will be.
"""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor


@torch.no_grad()
def ema_update(teacher_params: Iterable[Tensor], student_params: Iterable[Tensor], decay: float) -> None:
    """One step of the average, in place, for all tensors at once: a LoRA's or the whole model's."""
    teacher, student = list(teacher_params), list(student_params)
    assert len(teacher) == len(student) > 0
    torch._foreach_lerp_(teacher, student, 1 - decay)


def power_decay(step: int, width: float) -> float:
    """Decay at update `step`, the first being 1, which copies the student: (1 − 1/step)^(γ + 1).

    width: σ_rel of 2312.02696, the profile's standard deviation as a share of `step`, in (0, 1/√12).
    """
    return float((1 - 1 / step) ** (_exponent(width) + 1))


@cache
def _exponent(width: float) -> float:
    """γ ≥ 0 of (γ + 1)/((γ + 2)²(γ + 3)) = σ_rel², by bisection: the left side falls as γ grows."""
    low, high = 0.0, 1 / width**2
    for _ in range(100):
        middle = (low + high) / 2
        wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if wide else (low, middle)
    return low
