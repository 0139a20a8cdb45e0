"""Distances between two sets of features, each (n, d).

Fréchet distance of the Gaussians fitted to them (FID when the features are Inception's; 1706.08500):
    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)
It is biased upwards by about c/n, with a c that depends on the model, so it is also given for n → ∞ (1911.07023).
Kernel distance (KID; 1801.01401): unbiased squared MMD with k(x, y) = (x·y/d + 1)³.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 1024
"""Rows of which kernels and distances are computed at a time."""


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

    @cached_property
    def root(self) -> Tensor:
        """Σ^½ (d, d)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet (Wasserstein-2) distance between two Gaussians; 0 for equal moments."""
    cross = torch.linalg.eigvalsh(a.root @ b.covariance @ a.root).clamp(min=0).sqrt().sum()
    return _frechet(a, b.mean, b.covariance.trace(), cross)


def frechet_to(reference: Moments, features: Tensor) -> float:
    """`frechet_distance` of features (n, d), quicker where n < d.

    With X the centred features over sqrt(n − 1), the eigenvalues of Σ_r^½ XᵀX Σ_r^½ that are not 0 are those of the
    smaller X Σ_r Xᵀ (n, n).
    """
    if len(features) >= features.shape[1]:
        return frechet_distance(reference, Moments.of(features))
    x = features.double()
    centred = (x - x.mean(dim=0)) / (len(x) - 1) ** 0.5
    cross = torch.linalg.eigvalsh(centred @ reference.covariance @ centred.T).clamp(min=0).sqrt().sum()
    return _frechet(reference, x.mean(dim=0), centred.square().sum(), cross)


def _frechet(reference: Moments, mean: Tensor, trace: Tensor, cross: Tensor) -> float:
    return float((reference.mean - mean).square().sum() + reference.covariance.trace() + trace - 2 * cross)


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """A distance at several numbers of samples, and what it tends to as they grow."""

    infinity: float
    sizes: list[int]
    values: list[float]
    """Means over the disjoint parts of each size."""
    halves: tuple[float, float]
    """Of the first and the other half: how far apart two draws are."""


def extrapolate(
    distance: Callable[[Tensor], float], count: int, *, smallest: int, generator: torch.Generator, most: int = 5
) -> Extrapolation | None:
    """Intercept of the least-squares line of the distance over 1/n (Chong and Forsyth, 1911.07023).

    distance: of the samples with the given indices (n,). The shuffled samples are cut into k equal parts for k = 1, …,
    `most`, so that every size is measured on all of them. None where even halves would have fewer than `smallest`
    samples; the features' dimension + 1 is needed for the bias to go as 1/n.
    """
    most = min(most, count // smallest)
    if most < 2:
        return None
    order = torch.randperm(count, generator=generator)
    parts = {k: [distance(rows) for rows in order[: count // k * k].chunk(k)] for k in range(1, most + 1)}
    sizes = [count // k for k in parts]
    values = [sum(some) / len(some) for some in parts.values()]
    inverse, y = 1 / torch.tensor(sizes, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    slope = ((inverse - inverse.mean()) * (y - y.mean())).sum() / (inverse - inverse.mean()).square().sum()
    infinity = float(y.mean() - slope * inverse.mean())
    return Extrapolation(infinity=infinity, sizes=sizes, values=values, halves=(parts[2][0], parts[2][1]))


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD with the cubic polynomial kernel. x: (n, d), y: (m, d); may be slightly negative."""
    return kernel_terms(x, y)[0]


def kernel_terms(x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """`kernel_distance`, and what each sample adds to it: w_i = mean_{j≠i} k(x_i, x_j) − mean_j k(x_i, y_j), (n,).

    To first order the distance moves by 2/n · (w_i − mean w) with sample i, so its standard error is 2 std(w)/sqrt(n).
    """
    x, y = x.double(), y.double()
    own, cross = _kernel_sums(x, x, others=True) / (len(x) - 1), _kernel_sums(x, y) / len(y)
    within = _kernel_sums(y, y, others=True) / (len(y) - 1)
    return float(own.mean() + within.mean() - 2 * cross.mean()), own - cross


def _kernel_sums(u: Tensor, v: Tensor, others: bool = False) -> Tensor:
    """Σ_j k(u_i, v_j), (n,). others: without j = i."""

    def kernel(dots: Tensor) -> Tensor:
        return (dots / u.shape[1] + 1) ** 3

    sums = torch.cat([kernel(part @ v.T).sum(dim=1) for part in u.split(BLOCK)])
    return sums - kernel(u.square().sum(dim=1)) if others else sums


def manifold_radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point (n, d) to its k-th nearest other point, (n,)."""
    if len(points) <= k:
        raise ValueError(f"more than {k} points are needed for their {k}-th neighbours, got {len(points)}")
    return torch.cat([part.kthvalue(k + 1, dim=1).values for part in _distances(points, points)])


def manifold_hits(queries: Tensor, points: Tensor, radii: Tensor) -> Tensor:
    """Of each query (n, d), how many balls around points (m, d) with radii (m,) hold it, (n,).

    With k = 3, hits > 0 of generated samples in the balls of real ones is precision, of real ones in the balls of
    generated ones recall (Kynkäänniemi et al., 1904.06991). With k = 5, hits / k of generated samples is density
    (Naeem et al., 2002.09797).
    """
    return torch.cat([(part <= radii).sum(dim=1) for part in _distances(queries, points)])


def manifold_covered(points: Tensor, radii: Tensor, queries: Tensor) -> Tensor:
    """Which points' balls hold a query, (m,) bool: coverage (2002.09797), where points are the real samples."""
    return torch.cat([part.min(dim=1).values for part in _distances(points, queries)]) <= radii


def _distances(u: Tensor, v: Tensor) -> Iterator[Tensor]:
    """Euclidean distances, blocks of rows (·, m)."""
    u, v = u.double(), v.double()
    for part in u.split(BLOCK):
        yield torch.cdist(part, v)
