"""Moving a sample between noise levels: up by adding noise, down by a deterministic step.

    noising      x_t = alpha_t·x0 + sigma_t·eps
    re-noising   x_s = r·x_t + sqrt(sigma_s² − r²·sigma_t²)·eps,   r = alpha_s / alpha_t,   s noisier than t
    DDIM step    x_u = alpha_u·x̂0 + sigma_u·ε̂                  (2010.02502; Euler's step on a rectified flow)

Re-noising draws from q(x_s | x_t), so x_s has the marginal that x_t's own distribution implies. Noising a
predicted x̂0 instead would not: x̂0 is a mean over all that x_t may become: blurred (Self-NPO, 2505.11777).
Shapes: samples (B, *S); alpha, sigma (B, 1, …).
"""

import torch
from torch import Tensor

from selfnpo_core.prediction import Estimate
from selfnpo_core.schedule import NoiseLevel


def add_noise(x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    """x_t = alpha·x0 + sigma·eps."""
    return level.alpha * x0 + level.sigma * eps


def renoise(x_t: Tensor, eps: Tensor, level_t: NoiseLevel, level_s: NoiseLevel) -> Tensor:
    """x_s from x_t and fresh standard noise eps, for s at least as noisy as t; s = t gives x_t back.

    Where alpha_t = 0 nothing is noisier, so s = t there and the ratio is one.
    """
    no_signal = level_t.alpha == 0
    ratio = torch.where(no_signal, 1.0, level_s.alpha / level_t.alpha.masked_fill(no_signal, 1.0))
    added = (level_s.sigma**2 - ratio**2 * level_t.sigma**2).clamp(min=0).sqrt()  # below zero by rounding only
    return ratio * x_t + added * eps


def ddim_step(estimate: Estimate, level_next: NoiseLevel) -> Tensor:
    """The deterministic step to `level_next`: the estimate's own clean sample and noise, mixed anew."""
    return add_noise(estimate.x0, estimate.eps, level_next)
