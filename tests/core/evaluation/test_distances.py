"""Fréchet and kernel distances against closed forms and torchmetrics."""

import math

import pytest
import torch
from tests.fidelity import formulas
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from selfnpo_core.evaluation import (
    Moments,
    extrapolate,
    frechet_distance,
    frechet_to,
    kernel_distance,
    kernel_terms,
    manifold_covered,
    manifold_hits,
    manifold_radii,
)


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


@pytest.fixture
def fidelity():
    with formulas() as module:
        yield module


def features(rows, columns, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return scale * mixed + torch.randn(columns, generator=generator)


@pytest.mark.parametrize("rows", [30, 200])
def test_frechet_to_a_reference_equals_the_distance_with_fewer_rows_than_columns_and_more(rows):
    reference, some = Moments.of(features(300, 64, 0)), features(rows, 64, 1)
    assert frechet_to(reference, some) == pytest.approx(frechet_distance(reference, Moments.of(some)), rel=1e-6)


def test_distances_equal_torch_fidelity(fidelity):
    fid, kid = fidelity("metric_fid"), fidelity("metric_kid")
    x, y = features(400, 16, 2).double(), features(400, 16, 3).double()
    wanted = fid.fid_statistics_to_metric(*map(fid.fid_features_to_statistics, (x, y)), verbose=False)
    assert frechet_to(Moments.of(y), x) == pytest.approx(wanted[fid.KEY_METRIC_FID], rel=1e-4)
    whole = {"kid_subsets": 1, "kid_subset_size": 400, "verbose": False}
    wanted = kid.kid_features_to_metric(x, y, **whole)[kid.KEY_METRIC_KID_MEAN]
    assert kernel_distance(x, y) == pytest.approx(wanted, rel=1e-4)


def test_precision_and_recall_equal_torch_fidelity(fidelity):
    x, y = features(150, 8, 4), features(130, 8, 4, scale=0.6)
    wanted = fidelity("metric_prc").calculate_precision_recall_full(x.double(), y.double(), 3)
    precision = (manifold_hits(x, y, manifold_radii(y, 3)) > 0).double().mean().item()
    recall = (manifold_hits(y, x, manifold_radii(x, 3)) > 0).double().mean().item()
    assert 0 < precision < 1
    assert (precision, recall) == pytest.approx(wanted)


def test_manifolds_by_hand():
    """On a line: real points at 0, 1, 3, whose nearest others are 1, 1 and 2 away; 5 lies on the edge of the last."""
    real, made = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [5.0], [9.0]])
    radii = manifold_radii(real, 1)
    assert radii.tolist() == [1, 1, 2]
    assert manifold_hits(made, real, radii).tolist() == [2, 1, 0]
    assert manifold_covered(real, radii, made).tolist() == [True, True, True]
    assert manifold_covered(real, radii, made[2:]).tolist() == [False, False, False]
    with pytest.raises(ValueError, match="more than 3"):
        manifold_radii(real, 3)


def test_what_each_sample_adds_to_the_kernel_distance_gives_its_standard_error():
    generator, values, errors = torch.Generator().manual_seed(5), [], []
    y = torch.randn(300, 4, generator=generator)
    for _ in range(200):
        value, terms = kernel_terms(torch.randn(100, 4, generator=generator) + 0.6, y)
        values.append(value)
        errors.append(2 * terms.std().item() / 10)
    assert torch.tensor(values).std().item() == pytest.approx(torch.tensor(errors).mean().item(), rel=0.15)


def test_extrapolation_takes_the_bias_away():
    """‖μ₁ − μ₂‖² = 1 between unit Gaussians in 8 dimensions; both sides are equally many trials."""
    generator = torch.Generator().manual_seed(6)
    reference = Moments(mean=torch.zeros(8).double(), covariance=torch.eye(8).double(), count=10**9)
    shift = torch.tensor([1.0] + [0.0] * 7)
    plain, limit = [], []
    for _ in range(80):
        x = torch.randn(250, 8, generator=generator) + shift
        plain.append(frechet_to(reference, x))
        found = extrapolate(lambda rows, x=x: frechet_to(reference, x[rows]), 250, smallest=9, generator=generator)
        limit.append(found.infinity)
    assert found.sizes == [250, 125, 83, 62, 50]
    assert found.values[1] == pytest.approx(sum(found.halves) / 2)

    def apart(values):
        """From 1, in standard errors."""
        values = torch.tensor(values)
        return ((values.mean() - 1) / (values.std() / 80**0.5)).item()

    assert abs(apart(limit)) < 3
    assert apart(plain) > 4


def test_too_few_samples_are_not_extrapolated():
    generator = torch.Generator().manual_seed(7)
    assert extrapolate(lambda rows: 0.0, 17, smallest=9, generator=generator) is None
    found = extrapolate(lambda rows: 3 + 5 / len(rows), 18, smallest=9, generator=generator)
    assert found.infinity == pytest.approx(3)
    assert found.sizes == [18, 9]
