"""Distances between two sets of features, each (n, d).

Fréchet distance of the Gaussians fitted to them (FID when the features are Inception's; 1706.08500):
    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)
Kernel distance (KID; 1801.01401): unbiased squared MMD with k(x, y) = (x·y/d + 1)³.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean (d,) and unbiased covariance (d, d) of `count` feature vectors, float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """features: (n, d) with n ≥ 2."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features of shape (n ≥ 2, d) are needed, got {tuple(features.shape)}")
        x = features.double()
        return cls(mean=x.mean(dim=0), covariance=torch.cov(x.T, correction=1), count=len(x))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet (Wasserstein-2) distance between two Gaussians; 0 for equal moments."""
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    trace = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float((a.mean - b.mean).square().sum() + trace)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD with the cubic polynomial kernel. x: (n, d), y: (m, d); may be slightly negative."""
    x, y = x.double(), y.double()
    n, m = len(x), len(y)

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T / u.shape[1] + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())
