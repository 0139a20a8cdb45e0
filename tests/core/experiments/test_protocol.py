"""What is chosen on one set and claimed on another, on dots whose methods are known."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.core.experiments.test_equal_cost import Painter, Stepped, making, table
from torch import nn

from selfnpo_core.errors import InputError
from selfnpo_core.experiments import claims, equal_cost, frontier, methods, pareto, protocol
from selfnpo_core.experiments.claims import AGAINST, AGAINST_EQUAL, AGAINST_WHOLE, Claim, compare, found
from selfnpo_core.experiments.controls import CONTROLS
from selfnpo_core.experiments.equal_cost import fill
from selfnpo_core.experiments.frontier import write_frontier_page
from selfnpo_core.experiments.measure import real_features, resampled
from selfnpo_core.experiments.methods import Method, TrainedArms
from selfnpo_core.experiments.protocol import CHOOSE, CLAIM, Protocol, pick
from selfnpo_core.worlds.world import Demo, Task

WORLD = Stepped()


class Eager(Painter):
    """As `Painter`; weights of a seed make it right more often."""

    def __init__(self):
        super().__init__()
        self.denoiser, self.help = nn.Linear(1, 1), 0.0

    def __call__(self, noise, labels, scale):
        return super().__call__(noise - self.help, labels, scale)


def helping(rows, by):
    """A method whose weights help by so much."""

    def make(arms, variant):
        plain, _ = making(rows)(arms, variant)

        @contextmanager
        def attach(pipe):
            with plain(pipe):
                pipe.help = by * arms.seed
                yield
                pipe.help = 0.0

        return attach, {"training_seed": arms.seed, "npo_sha256": f"{arms.seed}" * 4}

    return make


@pytest.fixture
def known(monkeypatch):
    made = {
        "cfg": Method(title="plain guidance", what="w", make=making(lambda _: 2), scales=(1.5, 2.0, 3.0)),
        "ours": Method(
            title="Self-NPO",
            what="w",
            make=helping(lambda _: 2, 0.3),
            scales=(2.0, 3.0),
            variants=({"beta": 0.5}, {"beta": 1.0}),
            untrained="cfg",
            weights="ours",
        ),
        "apg": Method(title="APG", what="w", make=helping(lambda _: 2, -3.0), scales=(3.0,)),
    }
    for module in (equal_cost, methods, pareto, protocol, claims, frontier):
        monkeypatch.setattr(module, "METHODS", made)

    def make_control(arms, method, variant, control, *, scale, steps):
        return helping(lambda _: 3, 0.1)(arms, variant)[0], {"training_seed": arms.seed, "effective_scale": scale}

    monkeypatch.setattr(equal_cost, "make_control", make_control)
    return made


@pytest.fixture
def run(tmp_path, known):
    def of(name, seed):
        return replace(table(tmp_path / name), task=Task.draw(WORLD, 120, seed))

    return Protocol(
        choose=of("choose", CHOOSE), claim=of("claim", CLAIM), methods=list(known), budgets=[12, 20], seeds=[1, 2, 3]
    )


def draw(run, entries, set_):
    return list(fill(set_, TrainedArms(demo=None, work=run.claim.folder, seed=1), Eager(), entries))


def cell(method, scale, fd, accuracy, **more):
    figures = {"fd": [fd, fd - 1, fd + 1], "accuracy": [accuracy, 0, 1]}
    return {"method": method, "scale": scale, "variant": {}, **figures, **more}


def test_a_point_is_of_least_distance_among_the_no_less_accurate(known):
    cells = [
        cell("cfg", 2.0, 10, 0.80),
        cell("cfg", 3.0, 12, 0.90),
        cell("ours", 2.0, 5, 0.79),
        cell("ours", 3.0, 8, 0.80),
        cell("ours", 5.0, 9, 0.95),
        cell("apg", 3.0, 4, 0.70),
    ]
    assert {method: one["scale"] for method, one in pick(cells, WORLD).items()} == {"cfg": 2.0, "ours": 3.0}


def test_the_second_set_holds_plain_guidance_the_points_and_their_controls(run):
    with pytest.raises(InputError, match="16 of 16 cells of the first set"):
        run.claims()
    draw(run, run.choices(), run.choose)
    assert {entry.seed for entry in run.choices()} == {None, 1}
    wanted = run.claims()
    assert len({entry.name for entry in wanted}) == len(wanted)
    some = [entry for entry in wanted if entry.budget == 20]
    assert [entry.scale for entry in some if entry.method == "cfg"] == [1.5, 2.0, 3.0]
    ours = [entry for entry in some if entry.method == "ours"]
    assert "apg" not in {entry.method for entry in some}  # never as accurate
    assert len({(entry.scale, entry.variant["beta"]) for entry in ours}) == 1
    assert [entry.seed for entry in ours if not entry.control] == [1, 2, 3]
    assert [entry.seed for entry in ours if entry.control == "equal_scale"] == [1, 2, 3]
    others = [entry for entry in ours if entry.control not in ("", "equal_scale")]
    assert [entry.control for entry in others] == [name for name in CONTROLS if name != "equal_scale"]
    assert {entry.seed for entry in others} == {1}


def test_claims_are_compared_with_plain_guidance_at_its_best_there(run, tmp_path):
    draw(run, run.choices(), run.choose)
    draw(run, run.claims(), run.claim)
    real = resampled(WORLD, real_features(WORLD, 120, 3))
    compare(run, real)
    before = {path.name: path.stat().st_mtime_ns for path in run.claim.folder.iterdir()}
    for file in run.claim.scores.iterdir():
        file.unlink()
    compare(run, real)  # nothing is new, so no scores are asked for
    assert {path.name: path.stat().st_mtime_ns for path in run.claim.folder.iterdir()} == before
    one = found(run)[20]
    least = min((cell["fd"][0], cell["scale"]) for cell in one.plain)
    assert (one.base["fd"][0], one.base["scale"]) == least
    (claim,) = one.claims
    assert [cell["training_seed"] for cell in claim.cells] == [1, 2, 3]
    assert {cell[AGAINST]["scale"] for cell in claim.cells} == {least[1]}
    assert [cell[AGAINST_EQUAL]["arm"] for cell in claim.cells] == [cell["arm"] for cell in claim.equal]
    changes = [cell[AGAINST]["accuracy_change"][0] for cell in claim.cells]
    assert 0 < changes[0] <= changes[1] <= changes[2]
    assert claim.mean("accuracy_change", AGAINST)[0] == pytest.approx(sum(changes) / 3)
    assert claim.mean("excess_ratio", AGAINST)[0] != 1
    assert {control[AGAINST_WHOLE]["arm"] for control in one.controls if control["training_seed"] == 1} == {
        claim.cells[0]["arm"]
    }
    assert one.without == ["apg"]


def test_the_page_says_what_was_asked_for(run, tmp_path):
    draw(run, run.choices(), run.choose)
    draw(run, run.claims(), run.claim)
    demo = Demo(
        title="a test's model",
        about="dots",
        world=WORLD,
        presets={},
        kind="full",
        backbone=lambda: None,
        pipeline=lambda: None,
        captions=list,
        show=lambda *_: "",
        steps=1,
        scales=(),
        samples=1,
    )
    without = replace(run, controls=())
    assert [entry for entry in without.claims() if entry.control] == []
    page = write_frontier_page(demo, without, tmp_path, "make it", Eager())
    assert page.count("The controls are not drawn") == 2
    page = write_frontier_page(demo, run, tmp_path, "make it", Eager())
    assert "not drawn" not in page
    assert page == (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "No point as accurate as plain guidance's on the first set: APG." in page
    assert "- Self-NPO (beta " in page
    tables = [lines.splitlines() for lines in page.split("\n\n") if lines.startswith("|")]
    assert len(tables) == 4  # claims and controls of two budgets
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    facts = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert facts["sets"] == {"choose": 21, "claim": 22, "real": 23}
    assert set(facts["weights"]) == {"denoiser", "oracle", "preference"}
    assert facts["claims"][0]["npo_sha256"] == ["1111", "2222", "3333"]
    assert (tmp_path / "frontier.png").stat().st_size > 1000


def claim(ratio, change, *, sign=1, seeds=3, **more):
    versus = {"excess_ratio": [ratio] * 3, "accuracy_change": [change] * 3, **more}
    one = {**cell("ours", 2.0, 8, 0.8), AGAINST: versus}
    signs = {"FD": sign, "FVD": sign, "prompt accuracy": 0, "win rate": 0}
    return Claim(cells=[one] * seeds, base=cell("cfg", 2.0, 10, 0.8), signs=[signs] * seeds, equal=[])


def test_what_is_met_and_what_is_not(known):
    assert claim(0.75, 0.0).missed(WORLD) == []
    assert claim(0.76, 0.0).missed(WORLD) == ["the excess is 0.76 of plain's, not 0.75"]
    assert claim(0.7, -0.004).missed(WORLD) == ["prompt accuracy changes by -0.4 points"]
    assert claim(0.7, 0.0, sign=0).missed(WORLD) == ["FD is not lower beyond chance in every seed"]
    assert claim(0.7, 0.0, seeds=2).missed(WORLD) == ["2 training seeds are fewer than 3"]
    clips = SimpleNamespace(shape=(3, 9, 8, 8), distance="fd")
    assert claim(2.0, 0.0, motion_ratio=[0.96] * 3).missed(clips) == []  # 8 of 10
    assert claim(0.5, 0.0, motion_ratio=[0.9] * 3).missed(clips) == ["motion is 0.90 of plain's"]
