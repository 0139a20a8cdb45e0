"""Orders and sides: balanced, random, the same for the same seed."""

from collections import Counter

import pytest

from selfnpo_core.study.trials import DAMAGED, Trial, default_checks, plan_trials


@pytest.mark.parametrize("pairs", [1, 2, 7, 20])
def test_every_pair_once_with_sides_half_and_half(pairs: int) -> None:
    for participant in range(6):
        trials = plan_trials(pairs, 3, seed=1, participant=participant)
        real = [trial for trial in trials if not trial.check]
        assert sorted(trial.pair for trial in real) == list(range(pairs))
        assert all({trial.left, trial.right} == {"a", "b"} for trial in real)
        left = sum(trial.left == "a" for trial in real)
        assert abs(left - (pairs - left)) == pairs % 2


def test_two_successive_participants_see_every_pair_both_ways() -> None:
    for first in (0, 2, 4):
        sides = [
            {t.pair: t.left for t in plan_trials(9, 1, seed=5, participant=first + k) if not t.check} for k in range(2)
        ]
        assert all(sides[0][pair] != sides[1][pair] for pair in range(9))
    assert sides[0] != {t.pair: t.left for t in plan_trials(9, 1, seed=5, participant=0) if not t.check}


def test_orders_are_the_participants_own_and_come_from_the_seed() -> None:
    orders = [tuple(t.pair for t in plan_trials(12, 0, seed=3, participant=k)) for k in range(8)]
    assert len(set(orders)) == 8
    assert plan_trials(12, 2, seed=3, participant=4) == plan_trials(12, 2, seed=3, participant=4)
    assert plan_trials(12, 2, seed=3, participant=4) != plan_trials(12, 2, seed=4, participant=4)
    firsts = Counter(plan_trials(3, 0, seed=0, participant=k)[0].pair for k in range(300))
    assert min(firsts.values()) > 70


def test_attention_checks_are_one_sample_and_the_same_damaged() -> None:
    places = Counter()
    for participant in range(40):
        trials = plan_trials(10, 4, seed=0, participant=participant)
        checks = [trial for trial in trials if trial.check]
        assert len(checks) == 4
        assert all(
            sorted((t.left, t.right)) in (["a", "a" + DAMAGED], ["b", "b" + DAMAGED]) and 0 <= t.pair < 10
            for t in checks
        )
        assert sum(t.left.endswith(DAMAGED) for t in checks) == 2
        assert sum(t.left.startswith("a") for t in checks) == 2
        assert not trials[0].check
        places.update(k for k, trial in enumerate(trials) if trial.check)
    assert set(places) == set(range(1, 14))


def test_what_an_answer_prefers() -> None:
    trial = Trial(pair=0, left="b", right="a")
    assert [trial.choice(answer) for answer in ("left", "right", "same")] == ["b", "a", "same"]
    check = Trial(pair=0, left="b-damaged", right="b")
    assert [check.passed(answer) for answer in ("left", "right", "same")] == [False, True, False]
    assert not trial.check
    assert check.check


def test_number_of_checks() -> None:
    assert [default_checks(n) for n in (1, 4, 20, 100)] == [1, 1, 2, 10]
