"""Words and tables that follow the figures, and seeds taken together."""

from tests.core.experiments.dots import Dots

from selfnpo_core.experiments import report


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
        "seconds": 12.3,
    }


def test_seeds_are_taken_together():
    seeds = [cell("npo-s0", 2.0, 7.0, change=-3.0), cell("npo-s1", 2.0, 8.0, change=-2.5)]
    assert report.over_seeds(seeds, "fd") == (7.5, 6.0, 9.0)
    assert report.over_seeds(seeds, "fd_change", "against_cfg") == (-2.75, -4.0, -1.5)


def test_a_line_a_cell():
    lines = report.table([cell("cfg", 2.0, 10.0), cell("npo", 2.0, 7.0, change=-3.0, wins=0.6)], Dots()).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| cfg | 2 | 10.0 ± 1.0 | 80.0 % [78.0, 82.0] | — | 40 | 12 |"
    assert "60.0 % [58.0, 62.0]" in lines[3]


def test_the_verdict_is_at_plain_guidance_s_best_scale():
    cells = [
        cell("cfg", 2.0, 10.0),
        cell("npo", 2.0, 7.0, change=-3.0),
        cell("cfg", 5.0, 9.0),
        cell("npo", 5.0, 9.5, change=0.5),
    ]
    said = report.verdict(cells, Dots())
    assert "best scale, 5, Self-NPO changes FD by +0.5 (+6 %), within its 95 % interval [-0.5, +1.5]" in said
    assert "changes FD by -3.0 (-30 %), beyond" in report.verdict(cells[:2], Dots())


def test_curves_are_drawn(tmp_path):
    report.curves([cell("cfg", 2.0, 10.0), cell("npo", 2.0, 7.0)], Dots(), tmp_path / "curves.png", title="a test's")
    assert (tmp_path / "curves.png").stat().st_size > 1000
