"""What is said of cells of equal cost follows their figures: a winner, none, and chance among many."""

import pytest
from PIL import Image
from tests.core.experiments.dots import Dots

from selfnpo_core.errors import InputError
from selfnpo_core.experiments.equal_cost import UNTRAINED, by_budget
from selfnpo_core.experiments.methods import METHODS
from selfnpo_core.experiments.pareto import (
    INK,
    about,
    findings,
    front,
    labels,
    plot,
    table,
    table_untrained,
    words,
    words_untrained,
)

WORLD = Dots()


def cell(
    method,
    scale,
    fd,
    accuracy,
    *,
    fd_change=None,
    accuracy_change=(0.0, 0.01),
    wins=0.5,
    variant=None,
    budget=20,
    alike=False,
):
    """Changes: (value, half of the interval); none for the base. alike: those of the trained weights alone too."""

    def around(value, half):
        return [value, value - half, value + half]

    versus = None
    if fd_change:
        versus = {
            "arm": "cfg-b20",
            "scale": 2.0,
            "fd_change": around(*fd_change),
            "accuracy_change": around(*accuracy_change),
            "win_rate": around(wins, 0.022),
        }
    return {
        "arm": f"{method}-b{budget}",
        "method": method,
        "variant": variant or {},
        "scale": scale,
        "budget": budget,
        "samples": 2000,
        "scheduler": "DDIM",
        "steps": 10,
        "rows_per_dot": float(budget),
        "fd": around(fd, 1.0),
        "accuracy": around(accuracy, 0.02),
        "against": versus,
        UNTRAINED: versus if alike else None,
    }


BASE = cell("cfg", 2.0, 10.0, 0.80)


def test_the_front():
    cells = [BASE, cell("apg", 3.0, 9.0, 0.80), cell("pag", 3.0, 12.0, 0.82), cell("ours", 3.0, 12.0, 0.81)]
    assert front(cells, WORLD) == [cells[1], cells[2]]
    same = [BASE, cell("apg", 3.0, 10.0, 0.80)]
    assert front(same, WORLD) == same


def test_a_winner():
    cells = [
        BASE,
        cell("cfg", 5.0, 15.0, 0.78, fd_change=(5.0, 1.0)),
        cell("apg", 3.0, 8.0, 0.81, fd_change=(-2.0, 0.8), accuracy_change=(0.01, 0.02)),
        cell("ours", 3.0, 8.5, 0.70, fd_change=(-1.5, 0.8), accuracy_change=(-0.10, 0.02), variant={"beta": 0.5}),
    ]
    lines = words(cells, WORLD)
    assert lines == [
        "- Plain guidance has its least FD at scale 2: 10.0, with a prompt accuracy of 80.0 %. 3 other cells are "
        "compared with it.",
        "- Better in something and worse in nothing: APG at 3.",
        "- FD is better for APG at 3, Self-NPO (beta 0.5) at 3; worse for plain guidance at 5; 0 cannot be told apart.",
        "- Prompt accuracy is better for none; worse for Self-NPO (beta 0.5) at 3; 2 cannot be told apart.",
        "- Win rate is better for none; worse for none; 3 cannot be told apart.",
        "- On the front by their bare figures: APG at 3. Of these better than plain guidance's best beyond chance: APG "
        "at 3.",
    ]


def test_no_winner():
    cells = [
        BASE,
        cell("ours", 3.0, 9.0, 0.80, fd_change=(-1.0, 1.1)),
        cell("apg", 3.0, 9.5, 0.81, fd_change=(-0.5, 2.0)),
    ]
    lines = words(cells, WORLD)
    assert lines[1] == (
        "- No other method wins: no cell of one is better in one of the three figures and worse in none."
    )
    assert lines[2] == "- FD is better for none; worse for none; 2 cannot be told apart."
    assert lines[-1].endswith("Of these none wins beyond chance.")


def test_plain_guidance_at_another_scale_is_no_method_of_its_own():
    lines = words([BASE, cell("cfg", 3.0, 11.0, 0.80, fd_change=(1.0, 1.5), wins=0.6)], WORLD)
    assert lines[1].startswith("- No other method wins")
    assert lines[2] == (
        "- Plain guidance at 3 is better in something and worse in nothing: so much comes of the choice of a scale."
    )


def test_what_is_better_in_one_thing_and_worse_in_another_does_not_win():
    (finding,) = findings([BASE, cell("ours", 3.0, 8.0, 0.8, fd_change=(-2.0, 0.5), wins=0.4)], WORLD)
    assert finding.signs == {"FD": 1, "prompt accuracy": 0, "win rate": -1}
    assert not finding.wins


def test_a_win_rate_is_tested_against_a_half():
    """Of 2,000 pairs it has a standard error of 1.1 points there."""
    for wins, sign in ((0.53, 1), (0.515, 0), (0.47, -1)):
        (finding,) = findings([BASE, cell("ours", 3.0, 8.0, 0.8, fd_change=(0.0, 1.0), wins=wins)], WORLD)
        assert finding.signs["win rate"] == sign


def test_one_of_many_is_chance():
    """An interval that just excludes zero says something of one cell alone, and nothing among thirty."""
    likely = cell("apg", 3.0, 9.0, 0.8, fd_change=(-1.0, 0.9))
    assert findings([BASE, likely], WORLD)[0].wins
    many = [cell("pag", 3.0 + k, 10.0, 0.8, fd_change=(0.1, 1.0)) for k in range(29)]
    assert not any(finding.wins for finding in findings([BASE, likely, *many], WORLD))


def test_mixed_budgets_are_refused():
    other = cell("apg", 3.0, 9.0, 0.8, fd_change=(-1.0, 0.9), budget=40)
    for say in (words, findings):
        with pytest.raises(InputError, match="budget 20 and 40"):
            say([BASE, other], WORLD)


def test_scales_are_named_together():
    some = [cell("apg", scale, 9.0, 0.8) for scale in (2.0, 3.0, 5.0)]
    assert labels(some) == "APG at 2, 3 and 5"
    assert (
        labels([cell("ours", 2.0, 9.0, 0.8, variant={"beta": 0.5}), *some[:1]]) == "Self-NPO (beta 0.5) at 2, APG at 2"
    )
    assert labels([]) == "none"
    assert labels([cell("zero_star", 2.0, 9.0, 0.8, variant={"first": 1})]) == r"CFG-Zero\* (first 1) at 2"
    assert about("apg").endswith("; here eta 0, norm 0.0586, momentum -0.5.")
    assert about("ours").endswith("beta: strength.")


def test_table_and_plot(tmp_path):
    cells = [BASE, cell("ours", 3.0, 8.0, 0.82, fd_change=(-2.0, 0.5), variant={"beta": 0.5})]
    lines = table(cells, WORLD).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith(
        "| **Self-NPO** | beta 0.5 | 3 | 10 | 20 | 8.0 ± 1.0 | -2.0 [-2.5, -1.5] | 82.0 [80.0, 84.0]"
    )
    assert "the base" in lines[2]
    tiny = table([BASE, cell("ours", 3.0, 8.0, 0.82, fd_change=(-0.01, 0.5))], WORLD)
    assert "+0.0 [-0.5, +0.5]" in tiny
    plot({20: cells}, WORLD, tmp_path / "pareto.png", title="dots", real=1.0)
    assert Image.open(tmp_path / "pareto.png").size[0] > 500
    assert set(INK) == set(METHODS)
    assert by_budget(tmp_path) == {}


def test_what_trained_weights_change():
    """The correction is for these cells alone, and those of no trained weights are not among them."""
    change = {"fd_change": (-1.0, 0.9), "variant": {"beta": 0.5}}
    cells = [
        BASE,
        *(cell("pag", 3.0 + k, 10.0, 0.8, fd_change=(0.1, 1.0)) for k in range(29)),
        cell("ours", 3.0, 9.0, 0.8, **change, alike=True),
        cell("ours", 5.0, 9.0, 0.8, **{**change, "fd_change": (0.0, 1.0)}, wins=0.4, alike=True),
        cell("neon", 3.0, 9.0, 0.7, fd_change=(0.5, 1.0), accuracy_change=(-0.1, 0.01), alike=True),
    ]
    assert not any(finding.signs["FD"] for finding in findings(cells, WORLD))
    cells[-1][UNTRAINED] = {**cells[-1][UNTRAINED], "fd_change": [0.0, 0.0, 0.0]}
    lines = words_untrained([*cells[:-2], cells[-1]], WORLD)
    none = "better for none; worse for none; 1 cannot be told apart."
    assert lines == [
        f"- Self-NPO: FD is {none} Prompt accuracy is {none} Win rate is {none}",
        f"- Neon: FD is {none} Prompt accuracy is better for none; worse for Neon at 3; 0 cannot be told apart. "
        f"Win rate is {none}",
    ]
    assert "FD is better for Self-NPO (beta 0.5) at 3;" in words_untrained([*cells[:-2]], WORLD)[0]
    assert words_untrained(cells[:-3], WORLD) == []
    rows = table_untrained(cells, WORLD).splitlines()
    assert len(rows) == 2 + 3
    assert rows[2].startswith("| Self-NPO | beta 0.5 | 3 | 9.0 ± 1.0 | -1.0 [-1.9, -0.1] | +0.0 [-1.0, +1.0] | 50.0")
    assert len({line.count("|") for line in rows}) == 1
