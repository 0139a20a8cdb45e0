"""The teacher: an exponential moving average of the weights in training.

teacher ← decay·teacher + (1 − decay)·student
"""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def ema_update(teacher_params: Iterable[Tensor], student_params: Iterable[Tensor], decay: float) -> None:
    """One step of the average, in place, for all tensors at once: a LoRA's or the whole model's."""
    teacher, student = list(teacher_params), list(student_params)
    assert len(teacher) == len(student) > 0
    torch._foreach_lerp_(teacher, student, 1 - decay)
