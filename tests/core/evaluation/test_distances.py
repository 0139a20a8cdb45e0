"""Fréchet and kernel distances against closed forms and torchmetrics."""

import math

import pytest
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from selfnpo_core.evaluation import Moments, frechet_distance, kernel_distance


def test_frechet_of_known_gaussians():
    def gaussian(mean, variance):
        return Moments(mean=torch.tensor(mean).double(), covariance=torch.tensor(variance).double().diag(), count=2)

    a, b = gaussian([1.0, -2.0], [4.0, 9.0]), gaussian([0.0, 0.0], [1.0, 16.0])
    assert math.isclose(frechet_distance(a, b), 1 + 4 + (2 - 1) ** 2 + (3 - 4) ** 2, rel_tol=1e-12)


def test_frechet_equals_torchmetrics_on_correlated_features():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    y = torch.randn(200, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 1
    a, b = Moments.of(x), Moments.of(y)
    expected = _compute_fid(a.mean, a.covariance, b.mean, b.covariance).item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_kernel_distance_equals_torchmetrics_and_is_unbiased():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(80, 6, generator=generator), torch.randn(80, 6, generator=generator) * 1.3
    assert kernel_distance(x, y) == pytest.approx(poly_mmd(x.double(), y.double()).item(), rel=1e-6)
    same = [kernel_distance(*torch.randn(2, 40, 3, generator=generator)) for _ in range(400)]
    mean, error = torch.tensor(same).mean(), torch.tensor(same).std() / 20
    assert abs(mean) < 4 * error
