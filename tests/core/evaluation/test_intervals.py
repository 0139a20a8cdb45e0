"""Intervals: known values, and coverage in simulation."""

import math

import pytest
import torch

from selfnpo_core.evaluation import Moments, bootstrap, bootstrap_crossed, frechet_to, wilson, win_rate


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


def test_crossed_bootstrap_knows_that_votes_of_one_rater_or_item_go_together():
    """y = rater + item + noise: the variance of the mean is σ_r²/R + σ_i²/I + σ²/(R I)."""
    generator = torch.Generator().manual_seed(3)
    raters, items = torch.randn(30, 1, generator=generator), torch.randn(50, generator=generator)
    scores = raters + items + torch.randn(30, 50, generator=generator)
    expected = (raters.var() / 30 + items.var() / 50 + 1 / 1500).sqrt().item()
    interval = bootstrap_crossed(scores, generator=generator, repeats=2000)
    assert interval.value == pytest.approx(scores.mean().item())
    assert (interval.high - interval.low) / 2 / 1.96 == pytest.approx(expected, rel=0.1)


def test_crossed_bootstrap_with_votes_missing():
    generator = torch.Generator().manual_seed(4)
    scores = torch.tensor([[1.0, torch.nan, 0.0], [torch.nan, 0.5, torch.nan]])
    assert bootstrap_crossed(scores, generator=generator).value == pytest.approx(0.5)
    assert bootstrap_crossed(torch.full((2, 3), torch.nan), generator=generator) is None
    assert bootstrap_crossed(torch.zeros(0, 0), generator=generator) is None
    assert bootstrap_crossed(torch.tensor([[1.0, 1.0], [torch.nan, 1.0]]), generator=generator) is None
    one = torch.rand(1, 400, generator=generator)
    interval = bootstrap_crossed(one, generator=generator)
    assert interval.high - interval.value == pytest.approx(1.96 * one.std().item() / 20, rel=0.12)


def test_the_bootstrap_of_a_mean_covers():
    generator, covered = torch.Generator().manual_seed(3), 0
    for _ in range(400):
        x = torch.randn(40, generator=generator).exp()
        interval = bootstrap(lambda rows, x=x: x[rows].mean().item(), 40, generator=generator, repeats=60)
        covered += not interval.excludes(math.exp(0.5))
    assert 0.86 <= covered / 400 <= 0.98  # of skewed values


def test_a_win_rate_with_ties_covers():
    """Ties make the points less spread than wins and losses are, so its interval is rather too wide."""
    generator, covered = torch.Generator().manual_seed(5), []
    for _ in range(1000):
        a, b = torch.randint(0, 3, (2, 80), generator=generator)
        covered.append(not win_rate(a.clamp(min=1).float(), b.clamp(max=1).float()).excludes(7 / 9))
    assert 0.95 <= sum(covered) / 1000 < 1


def test_the_crossed_bootstrap_covers_where_votes_of_one_rater_or_item_go_together():
    """Wilson's, which takes votes for independent, does not."""
    generator, crossed, naive = torch.Generator().manual_seed(6), 0, 0
    for _ in range(200):
        raters, items = torch.randn(12, 1, generator=generator), torch.randn(40, generator=generator)
        votes = (0.5 * raters + items + torch.randn(12, 40, generator=generator) > 0).double()
        crossed += not bootstrap_crossed(votes, generator=generator, repeats=200).excludes(0.5)
        naive += not wilson(votes.sum().item(), votes.numel()).excludes(0.5)
    assert 0.91 <= crossed / 200 <= 0.99
    assert naive / 200 < 0.8


def test_the_bootstrap_of_a_paired_change_of_distances_covers():
    """Of two arms' Fréchet distances from the same draws: its mean over many is what most intervals hold."""
    generator = torch.Generator().manual_seed(7)
    real = Moments(mean=torch.zeros(4).double(), covariance=torch.eye(4).double(), count=10**9)
    found = []
    for _ in range(100):
        x = torch.randn(150, 4, generator=generator)
        one, other = 1.1 * x + 0.3, x + 0.2 * torch.randn(150, 4, generator=generator)

        def change(rows, one=one, other=other):
            return frechet_to(real, one[rows]) - frechet_to(real, other[rows])

        found.append(bootstrap(change, 150, generator=generator, repeats=30))
    expected = sum(interval.value for interval in found) / 100
    assert 0.9 <= sum(not interval.excludes(expected) for interval in found) / 100 <= 0.99
