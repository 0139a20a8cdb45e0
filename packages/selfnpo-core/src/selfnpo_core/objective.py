"""Training objectives: a student's x̂0 at the re-noised x_s against estimates made at x_t, less noisy.

    TDFT                ρ(x̂_student − x̂_teacher)                                 Self-NPO, 2505.11777
    gradient reversal   ρ(x̂_student − x̂_weak) + ρ(R_λ(x̂_student) − x̂_strong)    reversal: 1505.07818
    DPO                 −log σ(−β·[(e_w − e_w,ref) − (e_l − e_l,ref)])           Diffusion-DPO, 2311.12908
    denoising           ‖output − what x_s was made of‖²                         DDPM, 2006.11239

ρ is elementwise, then averaged: ½d² (`l2`) or pseudo-Huber sqrt(d² + c²) − c (`huber`). R_λ is the
identity whose gradient is −λ times what it receives. With ½d², gradient reversal between guidance w_w
and w_s has exactly (1 − λ) times TDFT's gradient at guidance w′ = (w_w − λ·w_s)/(1 − λ), hence λ < 1.
Denoising is the ordinary diffusion loss, for clean samples: there x_t is x0 itself.
Shapes: every x0 (B, *S), every error (B,), every loss a scalar. Targets carry no gradient.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.prediction import Estimate, from_estimate
from selfnpo_core.schedule import NoiseLevel

Rho = Literal["huber", "l2"]
Weighting = Literal["none", "snr"]


def squared(d: Tensor) -> Tensor:
    """½d²."""
    return d**2 / 2


def pseudo_huber(d: Tensor, c: float = 1e-3) -> Tensor:
    """sqrt(d² + c²) − c: ½d²/c near zero, |d| far from it."""
    return (d**2 + c**2).sqrt() - c


RHO: dict[str, Callable[[Tensor], Tensor]] = {"huber": pseudo_huber, "l2": squared}


def tdft_loss(student_x0: Tensor, target_x0: Tensor, rho: Rho = "huber") -> Tensor:
    """Mean of ρ(x̂_student − target): truncated diffusion fine-tuning (2505.11777)."""
    return _rho(rho)(student_x0 - target_x0.detach()).mean()


def denoising_loss(
    student: Estimate,
    truth: Estimate,
    x_s: Tensor,
    level: NoiseLevel,
    prediction_type: str,
    weighting: Weighting = "none",
) -> Tensor:
    """The ordinary diffusion loss (2006.11239) at x_s = alpha·x0 + sigma·eps, of which truth = (x0, eps).

    none   mean of (output − target)² in the model's own space: eps, v (2202.00512), x0, or eps − x0 (2210.02747)
    snr    mean of max(1/(SNR + 0.05), 1/2)·(ε̂ − eps)², whatever the model predicts; SNR = alpha²/sigma²

    Nothing is divided by alpha, so zero terminal SNR (2305.08891) is exact. x_s: (B, *S), level: (B, 1, …).
    """
    if weighting == "none":
        output, target = (from_estimate(e, x_s, level, prediction_type) for e in (student, truth))
        return (output - target.detach()).square().mean()
    if weighting != "snr":
        raise InputError(f"loss_weighting '{weighting}' is unknown: use none or snr")
    alpha2, sigma2 = level.alpha**2, level.sigma**2
    weight = (sigma2 / (alpha2 + 0.05 * sigma2)).clamp(min=0.5)
    return (weight * (student.eps - truth.eps.detach()).square()).mean()


class GradientReversal(torch.autograd.Function):
    """Forward: the identity. Backward: −λ times the gradient (1505.07818)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reversal_lambda: float) -> Tensor:
        ctx.reversal_lambda = reversal_lambda
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.reversal_lambda * gradient, None


def gradient_reversal_loss(
    student_x0: Tensor, weak_x0: Tensor, strong_x0: Tensor, reversal_lambda: float, rho: Rho = "huber"
) -> Tensor:
    """Towards the weak estimate and, by a gradient reversal layer, away from the strong one."""
    _check_lambda(reversal_lambda)
    reversed_x0: Tensor = GradientReversal.apply(student_x0, reversal_lambda)  # type: ignore[no-untyped-call]
    return tdft_loss(student_x0, weak_x0, rho) + tdft_loss(reversed_x0, strong_x0, rho)


def equivalent_teacher_guidance(weak: float, strong: float, reversal_lambda: float) -> float:
    """w′ = (w_w − λ·w_s)/(1 − λ): the guidance whose TDFT has gradient reversal's direction, for ½d²."""
    _check_lambda(reversal_lambda)
    return (weak - reversal_lambda * strong) / (1 - reversal_lambda)


def diffusion_dpo_loss(
    *,
    winner_error: Tensor,
    loser_error: Tensor,
    winner_reference_error: Tensor,
    loser_reference_error: Tensor,
    beta: float,
) -> Tensor:
    """−log σ of how much more the model improved on the winner than on the loser; errors: (B,).

    With errors ½·mean(d²), β means what `beta_dpo` means in Diffusion-DPO's training script (2311.12908).
    """
    winner_change = winner_error - winner_reference_error.detach()
    loser_change = loser_error - loser_reference_error.detach()
    return -F.logsigmoid(-beta * (winner_change - loser_change)).mean()


def npo_dpo_loss(
    student_x0: Tensor,
    reference_x0: Tensor,
    weak_x0: Tensor,
    strong_x0: Tensor,
    beta: float,
    rho: Rho = "huber",
) -> Tensor:
    """Diffusion-DPO with the pair swapped (Diffusion-NPO): the weak estimate wins against the strong one.

    `reference_x0` is the base model's estimate at the student's own x_s.
    """
    errors = {
        "winner_error": _row_error(student_x0, weak_x0, rho),
        "loser_error": _row_error(student_x0, strong_x0, rho),
        "winner_reference_error": _row_error(reference_x0, weak_x0, rho),
        "loser_reference_error": _row_error(reference_x0, strong_x0, rho),
    }
    return diffusion_dpo_loss(**errors, beta=beta)


def _row_error(x0: Tensor, target_x0: Tensor, rho: Rho) -> Tensor:
    """Mean of ρ over everything but the batch: (B, *S) → (B,)."""
    return _rho(rho)(x0 - target_x0.detach()).flatten(1).mean(1)


def _rho(name: str) -> Callable[[Tensor], Tensor]:
    if name not in RHO:
        raise InputError(f"loss '{name}' is unknown: use one of {', '.join(RHO)}")
    return RHO[name]


def _check_lambda(reversal_lambda: float) -> None:
    if not 0 <= reversal_lambda < 1:
        raise InputError(f"reversal_lambda is {reversal_lambda}, but must be 0 or more and less than 1 to be bounded")
