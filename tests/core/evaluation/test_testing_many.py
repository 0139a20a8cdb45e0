"""p-values of intervals, and Holm's correction."""

import pytest
import torch

from selfnpo_core.evaluation import bootstrap, holm, normal_p_value, p_value
from selfnpo_core.evaluation.intervals import Z95


def test_an_interval_that_ends_at_neutral_is_five_per_cent() -> None:
    assert p_value((2.0, 0.0, 4.0)) == pytest.approx(0.05)
    assert p_value((-2.0, -4.0, 0.0)) == pytest.approx(0.05)
    assert p_value((0.6, 0.5, 0.7), 0.5) == pytest.approx(0.05)
    assert normal_p_value(2.575829, 1.0) == pytest.approx(0.01, rel=1e-4)
    assert p_value((0.0, 0.0, 0.0)) == 1.0
    assert p_value((0.1, 0.1, 0.1)) == 0.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_errs_in_any_of_many_with_the_chance_that_it_says() -> None:
    draws = torch.rand(2000, 20, generator=torch.Generator().manual_seed(0)).tolist()
    wrong = sum(min(holm(row)) < 0.05 for row in draws) / len(draws)
    bare = sum(min(row) < 0.05 for row in draws) / len(draws)
    assert wrong < 0.065
    assert bare > 0.5


def test_the_p_value_of_a_bootstrapped_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(400, generator=generator) + 0.15
    interval = bootstrap(lambda rows: values[rows].mean().item(), 400, generator=generator, repeats=1000)
    exact = normal_p_value(values.mean().item(), values.std().item() / 20)
    assert p_value(interval) == pytest.approx(exact, rel=0.5)
    half = (interval[2] - interval[1]) / 2
    assert half == pytest.approx(Z95 * values.std().item() / 20, rel=0.1)
