"""Tests of paired differences: against enumeration, known values, and their level in simulation."""

import itertools
import math

import pytest
import torch

from selfnpo_core.evaluation import bootstrap, holm, interval_test, normal_test, permutation_test, sign_test
from selfnpo_core.evaluation.significance import EXACT


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_sign_test_is_the_exact_binomial():
    from scipy.stats import binomtest

    for positive, negative in ((9, 1), (5, 5), (0, 7), (130, 90), (3000, 2800)):
        differences = torch.cat([torch.ones(positive), -torch.ones(negative), torch.zeros(4)])
        assert sign_test(differences) == pytest.approx(binomtest(positive, positive + negative).pvalue, rel=1e-9)
    assert sign_test(torch.zeros(3)) == 1


def test_the_sign_test_equals_the_sum_of_binomials():
    for positive, negative in ((1, 0), (9, 1), (5, 5), (6, 5), (0, 7), (130, 90), (3000, 2800)):
        count, fewer = positive + negative, min(positive, negative)
        wanted = min(1.0, 2 * sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count)
        differences = torch.cat([torch.ones(positive), -torch.ones(negative)])
        assert sign_test(differences) == pytest.approx(wanted, rel=1e-12, abs=0)


def test_the_permutation_test_equals_enumeration():
    d = torch.randn(9, generator=generator()) + 0.4
    sums = [
        abs(sum(s * v for s, v in zip(signs, d.double().tolist(), strict=True)))
        for signs in itertools.product((1, -1), repeat=9)
    ]
    wanted = sum(total >= abs(d.double().sum().item()) - 1e-12 for total in sums) / 2**9
    assert permutation_test(d, generator=generator()) == pytest.approx(wanted)
    assert permutation_test(torch.cat([d, torch.zeros(30)]), generator=generator()) == pytest.approx(wanted)


def test_many_differences_are_drawn_from_and_p_is_never_zero():
    d = torch.randn(EXACT, generator=generator(1)) + 0.35
    exact = permutation_test(d, generator=generator())
    drawn = permutation_test(torch.cat([d, torch.full((1,), 1e-9)]), generator=generator(), repeats=20000)
    assert 0.02 < exact < 0.9
    assert drawn == pytest.approx(exact, abs=0.012)
    assert permutation_test(torch.ones(40), generator=generator(), repeats=99) == 1 / 100
    assert permutation_test(torch.zeros(40), generator=generator()) == 1


def test_the_permutation_test_keeps_its_level():
    numbers = generator(2)
    rejected = [
        permutation_test(torch.randn(20, generator=numbers), generator=numbers, repeats=99) <= 0.05 for _ in range(400)
    ]
    assert 0.02 <= sum(rejected) / 400 <= 0.085


def test_holm_by_hand():
    """Sorted: 0.01·4, 0.02·3, 0.03·2, 0.5·1, each no less than the one before."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_normal_test():
    assert normal_test(1.959964, 1.0) == pytest.approx(0.05, abs=1e-6)
    assert normal_test(-1.959964, 1.0) == normal_test(1.959964, 1.0)
    assert (normal_test(0.0, 0.0), normal_test(1.0, 0.0)) == (1.0, 0.0)


def test_an_interval_that_ends_at_neutral_is_five_per_cent():
    assert interval_test((2.0, 0.0, 4.0)) == pytest.approx(0.05)
    assert interval_test((-2.0, -4.0, 0.0)) == pytest.approx(0.05)
    assert interval_test((0.6, 0.5, 0.7), 0.5) == pytest.approx(0.05)
    assert interval_test((0.0, 0.0, 0.0)) == 1.0
    assert interval_test((0.1, 0.1, 0.1)) == 0.0


def test_holm_errs_in_any_of_many_with_the_chance_that_it_says():
    draws = torch.rand(2000, 20, generator=generator()).tolist()
    wrong = sum(min(holm(row)) < 0.05 for row in draws) / len(draws)
    assert 0.035 < wrong < 0.065
    assert sum(min(row) < 0.05 for row in draws) / len(draws) > 0.5


def test_the_p_value_of_a_bootstrapped_mean():
    numbers = generator(1)
    values = torch.randn(400, generator=numbers) + 0.08
    interval = bootstrap(lambda rows: values[rows].mean().item(), 400, generator=numbers, repeats=1000)
    exact = normal_test(values.mean().item(), values.std().item() / 20)
    assert interval_test(interval) == pytest.approx(exact, rel=0.5)
    assert 0.001 < exact < 0.9
