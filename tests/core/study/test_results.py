"""What votes say: counts by arm and not by side, ties as half, checks apart, the inattentive left out."""

import csv
import io

import pytest

from selfnpo_core.evaluation import wilson
from selfnpo_core.study.results import summarise, votes_csv
from selfnpo_core.study.trials import Trial
from selfnpo_core.study.votes import Vote

NAMES = {"a": "red", "b": "blue"}
STUDY = {"pairs": 4, "attention_checks": 1, "questions": [["overall", "Which?"], ["detail", "And?"]]}
AB, BA = ("a", "b"), ("b", "a")
PASSED, FAILED = "right", "left"


def ballot(who: int, sides: list, answers: list, question: str = "overall", first: int = 0) -> list[Vote]:
    """sides: (left, right) of pairs 0, 1, …"""
    return [
        Vote(
            participant=who,
            position=first + k,
            trial=Trial(pair=k, left=left, right=right),
            question=question,
            answer=answer,
        )
        for k, ((left, right), answer) in enumerate(zip(sides, answers, strict=True))
    ]


def check(who: int, answer: str, question: str = "overall") -> list[Vote]:
    return ballot(who, [("b-damaged", "b")], [answer], question, first=4)


VOTES = [
    *ballot(0, [AB, BA, AB, BA], ["left", "left", "same", "right"]),  # a b same a
    *ballot(0, [AB, BA], ["right", "right"], "detail"),  # b a
    *check(0, PASSED),
    *check(0, FAILED, "detail"),  # only the first question decides
    *ballot(1, [BA, AB, BA], ["right", "right", "left"]),  # a b b
    *ballot(2, [AB, AB, AB, AB], ["left"] * 4),
    *check(2, FAILED),
    *check(3, "same"),
    *ballot(4, [BA], ["left"]),  # b
]


def test_counts() -> None:
    results = summarise(VOTES, STUDY, NAMES)
    overall, detail = results.answers
    assert (overall.wins, overall.ties, overall.losses, overall.votes) == (3, 1, 4, 8)
    assert (detail.wins, detail.ties, detail.losses) == (1, 0, 1)
    assert overall.wilson == wilson(3.5, 8)
    assert overall.bootstrap.value == pytest.approx(3.5 / 8)
    assert 0 <= overall.bootstrap.low < 3.5 / 8 < overall.bootstrap.high <= 1
    # units: pair 0 a a b, pair 1 b b, pair 2 same b, pair 3 a (alone). n = 7, n_a = 2, n_b = 4, n_same = 1;
    # disagreeing: pair 0 4 · ½ = 2, pair 2 2, so 4; expected 49 − 21 = 28; 1 − 6 · 4/28
    assert overall.alpha == pytest.approx(1 - 6 * 4 / 28)
    assert detail.alpha is None


def test_the_inattentive_are_left_out_and_counted() -> None:
    results = summarise(VOTES, STUDY, NAMES)
    assert results.excluded == {2: 1, 3: 1}
    assert results.excluded_votes == 6
    assert results.participants == 3
    lenient = summarise(VOTES, STUDY, NAMES, allowed_failures=1)
    assert lenient.excluded == {}
    assert lenient.answers[0].wins == 7
    assert lenient.participants == 5
    assert summarise(VOTES, {**STUDY, "attention_checks": 4}, NAMES).allowed_failures == 1
    assert [summarise([], {**STUDY, "attention_checks": n}, NAMES).allowed_failures for n in (0, 3, 8)] == [0, 0, 2]


def test_finished_means_every_question_of_every_trial() -> None:
    sides = [AB] * 4
    whole = [v for q in ("overall", "detail") for v in (*ballot(7, sides, ["left"] * 4, q), *check(7, PASSED, q))]
    assert summarise(whole, STUDY, NAMES).finished == 1
    assert summarise(whole[:-1], STUDY, NAMES).finished == 0


def test_no_votes() -> None:
    results = summarise([], STUDY, NAMES)
    assert (results.participants, results.excluded) == (0, {})
    assert all(answer.wilson is answer.bootstrap is answer.alpha is None for answer in results.answers)
    assert results.as_json()["questions"][0]["win_rate"] is None


def test_json() -> None:
    told = summarise(VOTES, STUDY, NAMES).as_json()
    assert told["arms"] == NAMES
    assert told["participants"] == {"counted": 3, "finished": 0, "excluded": 2}
    assert told["excluded"] == [{"participant": 2, "failed": 1}, {"participant": 3, "failed": 1}]
    overall = told["questions"][0]
    assert (overall["key"], overall["wins"], overall["ties"], overall["losses"]) == ("overall", 3, 1, 4)
    assert overall["wilson"][0] < overall["win_rate"] < overall["wilson"][1]


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(votes_csv(VOTES, [(f'a "{k}", b', k) for k in range(4)]))))
    assert len(rows) == len(VOTES)
    assert rows[1] == {
        "participant": "0",
        "trial": "1",
        "pair": "1",
        "prompt": 'a "1", b',
        "seed": "1",
        "left": "b",
        "right": "a",
        "question": "overall",
        "answer": "left",
        "preferred": "b",
        "check": "0",
    }
    assert [row["preferred"] for row in rows if row["check"] == "1"][:2] == ["b", "b-damaged"]
