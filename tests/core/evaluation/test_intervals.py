"""Intervals: known values, and coverage in simulation."""

import pytest
import torch

from selfnpo_core.evaluation import bootstrap, wilson, win_rate


def test_wilson_known_value():
    interval = wilson(8, 10)
    assert interval.low == pytest.approx(0.4902, abs=1e-4)
    assert interval.high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_covers():
    hits = torch.distributions.Binomial(60, torch.tensor(0.3)).sample
    torch.manual_seed(0)
    covered = [not wilson(hits().item(), 60).excludes(0.3) for _ in range(1000)]
    assert 0.93 <= sum(covered) / 1000 <= 0.975


def test_win_rate_counts_ties_as_halves():
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 2.0, 4.0, 1.0])
    assert win_rate(a, b).value == (2 + 0.5) / 4
    assert win_rate(b, a).value == 1 - win_rate(a, b).value


def test_bootstrap_of_a_paired_mean_matches_the_standard_error():
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(500, generator=generator)
    b = a + 0.3 + 0.1 * torch.randn(500, generator=generator)
    interval = bootstrap(lambda rows: (b[rows] - a[rows]).mean().item(), 500, generator=generator, repeats=400)
    expected = 1.96 * (b - a).std().item() / 500**0.5
    assert interval.value == pytest.approx(0.3, abs=0.02)
    assert interval.high - interval.value == pytest.approx(expected, rel=0.12)
