"""What a page says of figures: better only beyond its interval and after the correction, and what must be known."""

import pytest

from selfnpo_core.evaluation import Interval
from selfnpo_core.reporting.figures import Figure, Limit, Study
from selfnpo_core.reporting.words import Names, cautions, escaped, legend, preferred, table, verdict

NAMES = Names("new", "old")


def figure(*change: float, better: str = "higher", **more: object) -> Figure:
    known = {"value": (2.0, 1.0, 3.0), "against": (1.0, 0.5, 1.5), "win_rate": (0.7, 0.6, 0.8), "count": 30}
    return Figure.model_validate({**known, "better": better, "change": change, "p": 0.01, "p_holm": 0.02, **more})


@pytest.mark.parametrize(
    ("given", "tone", "words"),
    [
        (figure(1.0, 0.5, 1.5), "better", "beyond its 95 % interval and so better (p\u00a00.01; 0.02 by Holm's"),
        (
            figure(-1.0, -1.5, -0.5),
            "worse",
            "−1 [−1.5, −0.5] from “old” to “new”, beyond its 95 % interval and so worse",
        ),
        (figure(-1.0, -1.5, -0.5, better="lower"), "better", "and so better"),
        (figure(1.0, 0.5, 1.5, better="lower"), "worse", "and so worse"),
        (figure(1.0, 0.5, 1.5, better="neither"), "changed", "and so higher"),
        (figure(1.0, -0.5, 2.5), "open", "within its 95 % interval, so no difference can be told"),
        (figure(0.0, 0.0, 0.0), "open", "within its 95 % interval, so no difference can be told"),
        (figure(1.0, 0.5, 1.5, p_holm=0.2), "open", "but not after the correction, so it may be chance"),
        (figure(1.0, 0.5, 1.5, p=None, p_holm=None), "better", "(not corrected for the other metrics)"),
        (figure(float("nan"), float("nan"), float("nan")), "open", "not finite, so no difference can be told"),
        (
            Figure(count=9, win_rate=Interval(0.2, 0.1, 0.3)),
            "worse",
            "new wins 20.0 % [10.0, 30.0] of the pairs, beyond",
        ),
        (Figure(count=9, win_rate=Interval(0.6, 0.4, 0.8)), "open", "within its 95 % interval"),
        (Figure(count=9, value=Interval(1, 0, 2), against=Interval(2, 1, 3)), "open", "difference was not tested"),
    ],
)
def test_verdicts(given: Figure, tone: str, words: str) -> None:
    told = verdict("score", given, NAMES, 4)
    assert told.tone == tone
    assert words in told.text


def test_one_arm_tells_no_change() -> None:
    alone = Figure(count=9, value=Interval(1, 0.5, 2))
    assert "says nothing of a change" in verdict("score", alone, Names("new", None), 1).text
    assert table({"score": alone}, Names("new", None)) == (["metric", "new"], [["score ↑", "1 [0.5, 2]"]])
    assert "minus" not in legend(Names("new", None))


def test_the_other_way_round() -> None:
    given = figure(
        -1.0, -1.5, -0.25, limit={"infinity": 1}, against_limit={"infinity": 2}, win_rate=(0.2, 0.1, 0.4)
    ).turned()
    assert given.change == (1.0, 0.25, 1.5)
    assert given.win_rate == pytest.approx((0.8, 0.6, 0.9))
    assert (given.value.value, given.against.value) == (1, 2)
    assert (given.limit, given.against_limit) == (Limit(infinity=2), Limit(infinity=1))
    assert "limit" not in figure(1, 0, 2).turned().model_dump(exclude_unset=True)


def test_biased_distances() -> None:
    few = figure(1, 0.5, 1.5, limit=None, better="lower")
    assert "mostly bias" in cautions("fid", few, NAMES)[0]
    told = cautions("fid", figure(1, 0.5, 1.5, limit={"infinity": 12.5}, against_limit={"infinity": 13}), NAMES)[0]
    assert "new has 12.5, old 13" in told
    below = figure(1, 0.5, 1.5, limit={"infinity": 2}, against_limit={"infinity": -3})
    assert "below 0 cannot be" in cautions("fid", below, NAMES)[0]
    assert cautions("kid", figure(1, 0.5, 1.5), NAMES) == []


def test_votes() -> None:
    question = {"key": "q", "text": "Which?", "votes": 20, "wins": 14, "ties": 2, "losses": 4, "alpha": 0.4}
    study = {
        "schema": 1,
        "arms": {"a": "x/new", "b": "x/old"},
        "pairs": 10,
        "participants": {"counted": 2, "finished": 2, "excluded": 0},
        "questions": [
            {**question, "win_rate": 0.75, "wilson": (0.5, 0.9), "bootstrap": (0.55, 0.95)},
            {**question, "win_rate": 0.25, "wilson": (0.1, 0.45), "bootstrap": None},
            {**question, "win_rate": 0.6, "wilson": (0.51, 0.7), "bootstrap": (0.3, 0.9)},
            {**question, "votes": 0, "win_rate": None, "wilson": None, "bootstrap": None, "alpha": None},
        ],
    }
    read = Study.model_validate(study)
    told = [preferred(each, read).text for each in read.questions]
    assert "75.0 % [55.0, 95.0] of 20 votes, ties as half, beyond its 95 % interval: A is preferred" in told[0]
    assert "B is preferred (as if votes were independent); Krippendorff's α" in told[1]
    assert "no preference can be told" in told[2]
    assert "no votes" in told[3]


def test_markdown_is_text() -> None:
    assert escaped("a|b\n<script>*x*") == "a\\|b &lt;script>\\*x\\*"
