"""The results page: seeds taken together, and words that follow the figures."""

import json

import pytest
from tests.core.experiments.dots import Dots

from selfnpo_core.experiments import report
from selfnpo_core.worlds.world import Demo


def cell(arm, scale, fid, *, change=None, accuracy=0.8, wins=0.5):
    around = [fid, fid - 1, fid + 1]
    versus = change and {
        "fd_change": [change, change - 1, change + 1],
        "accuracy_change": [-0.05, -0.08, -0.02],
        "win_rate": [wins, wins - 0.02, wins + 0.02],
    }
    return {
        "arm": arm,
        "scale": scale,
        "samples": 2000,
        "fd": around,
        "accuracy": [accuracy, accuracy - 0.02, accuracy + 0.02],
        "against_cfg": versus,
        "by_attribute": {"side": accuracy},
        "rows_per_dot": 40.0,
    }


@pytest.fixture
def cells():
    return [
        cell("cfg", 2.0, 10.0),
        cell("npo-s0", 2.0, 7.0, change=-3.0, wins=0.6),
        cell("npo-s1", 2.0, 8.0, change=-2.5, wins=0.6),
        cell("npo-s0", 5.0, 8.0, change=0.5),
        cell("cfg", 5.0, 9.0),
    ]


def test_seeds_are_taken_together(cells):
    rows = report.summary(cells, Dots())
    assert [(row["arm"], row["scale"], row["seeds"]) for row in rows] == [
        ("cfg", 2.0, 1),
        ("cfg", 5.0, 1),
        ("npo", 2.0, 2),
        ("npo", 5.0, 1),
    ]
    assert rows[2]["fd"] == (7.5, 6.0, 9.0)
    assert rows[2]["against_cfg"]["fd_change"] == (-2.75, -4.0, -1.5)


def test_words_follow_the_figures(cells):
    two, five = report.findings(report.summary(cells, Dots()), Dots())
    assert two == "- Scale 2: FD -28 %; FD better, prompt accuracy worse, win rate better."
    assert "FD not told apart" in five
    assert "win rate not told apart" in five


def test_a_tuned_model_is_compared_with_itself(cells):
    tuned = cell("tuned", 2.0, 6.0, change=-4.0)
    both = {
        **cell("tuned_npo_a0-s1", 2.0, 5.0, change=-5.0),
        "against_tuned": cell("x", 2.0, 5.0, change=-1.5)["against_cfg"],
    }
    rows = report.summary([*cells, tuned, both], Dots())
    assert [row["arm"] for row in rows][-2:] == ["tuned", "tuned_npo_a0"]
    table = report.markdown(rows, Dots()).splitlines()
    assert "win rate against tuned" in table[0]
    assert len({line.count("|") for line in table}) == 1
    assert report.findings(rows, Dots())[-1].startswith(
        "- preference-tuned, Self-NPO with α = 0: scale 2: FD -25 %; FD better"
    )


def test_the_page_is_written_from_the_cells(cells, tmp_path):
    (tmp_path / "cells").mkdir()
    for one in cells:
        (tmp_path / "cells" / f"{one['arm']}-g{one['scale']:g}.json").write_text(json.dumps(one))
    (tmp_path / "notes.md").write_text("What else was seen.\n")
    demo = Demo(
        title="a test's model",
        about="dots",
        world=Dots(),
        presets={},
        kind="full",
        backbone=lambda: None,
        pipeline=lambda: None,
        captions=list,
        show=lambda *_: "",
        steps=2,
        scales=(2.0,),
        samples=8,
    )
    page = report.write_page(tmp_path, demo, "make table")
    assert "2,000 dots a cell" in page
    assert "What else was seen." in page
    assert page.count("| Self-NPO |") == 2
    assert (tmp_path / "curves.png").stat().st_size > 1000
