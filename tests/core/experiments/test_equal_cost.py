"""Cells of equal cost: steps that fit a budget, cells drawn once, comparisons with plain guidance at its best scale."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.core.experiments.dots import Dots
from torch import nn

from selfnpo_core.errors import InputError
from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.equal_cost import (
    UNTRAINED,
    Entry,
    best_plain,
    by_budget,
    check_budget,
    entries,
    fill,
    most_within,
    pair_up,
)
from selfnpo_core.experiments.measure import against
from selfnpo_core.experiments.methods import Method, TrainedArms
from selfnpo_core.worlds.world import Task


class Stepped(Dots):
    """Dots whose pipeline runs its network at every step."""

    def draw_samples(self, pipe, task, *, guidance_scale, steps, batch):
        for part in super().draw_samples(pipe, task, guidance_scale=guidance_scale, steps=steps, batch=batch):
            for step in range(steps):
                rows = pipe.rows(step) if guidance_scale > 1 else 1
                pipe.denoiser(torch.zeros(rows * len(part), 1))
            yield part


class Painter:
    """Puts the dot where it is asked to with a chance that guidance raises up to scale 3, and lowers after it."""

    def __init__(self):
        self.denoiser, self.scheduler, self.rows = nn.Identity(), SimpleNamespace(), lambda _: 2

    def __call__(self, noise, labels, scale):
        right = noise[:, 0] < 1.5 - abs(scale - 3)
        data = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
        for row, (side, good) in enumerate(zip(labels[:, 0].tolist(), right.tolist(), strict=True)):
            half = side if good else 1 - side
            data[row, :, 2:6, 4 * half : 4 * half + 4] = 220 if good else 90
        return data


drawn: list[str] = []


def making(rows):
    """A method whose steps run so many rows."""

    def make(_shop, variant):
        @contextmanager
        def attach(pipe):
            drawn.append("")
            before, pipe.rows = pipe.rows, rows
            yield
            pipe.rows = before

        return attach, {"told": variant.get("strength")}

    return make


@pytest.fixture
def methods(monkeypatch):
    drawn.clear()
    made = {
        "cfg": Method(title="plain guidance", what="", make=making(lambda _: 2), scales=(1.0, 2.0, 3.0)),
        "pag": Method(
            title="PAG",
            what="",
            make=making(lambda _: 3),
            scales=(3.0,),
            variants=({"strength": 1.0}, {"strength": 2.0}),
        ),
        "interval": Method(title="interval", what="", make=making(lambda step: 1 + step % 2), scales=(2.0,)),
        "npo": Method(title="Self-NPO", what="", make=making(lambda _: 2), scales=(2.0,), untrained="cfg"),
    }
    monkeypatch.setattr("selfnpo_core.experiments.equal_cost.METHODS", made)
    return made


def table(folder, count=120):
    world = Stepped()
    task = Task.draw(world, count, 5)
    return Table(world=world, folder=folder / "cells", scores=folder / "scores", task=task, steps=0, batch=50)


def arms(folder):
    return TrainedArms(demo=None, work=folder, seed=1)


def test_as_many_steps_as_fit():
    for k in (1, 2, 3):
        assert most_within(lambda n, k=k: k * n, 20) == 20 // k
    assert most_within(lambda n: max(0, 2 * (n - 1)), 20) == 11  # the first step costs nothing
    assert most_within(lambda n: n + n // 3, 20) == 15
    with pytest.raises(InputError, match="less than one step"):
        most_within(lambda n: 3 * n, 2)


def test_every_variant_at_every_scale_within_every_budget(methods):
    wanted = entries(["npo", "cfg", "pag"], [20, 40], seed=7)
    assert [entry.name for entry in wanted if entry.budget == 40] == [
        "cfg-b40-g1",
        "cfg-b40-g2",
        "cfg-b40-g3",
        "pag-strength1-b40-g3",
        "pag-strength2-b40-g3",
        "npo-s7-b40-g2",
    ]
    told = entries(["cfg", "pag"], [20], seed=1, scales=[5.0])
    assert {(entry.method, entry.scale) for entry in told} == {("cfg", 5.0), ("pag", 3.0)}  # which has one of its own
    with pytest.raises(InputError, match="'nonsense' is unknown"):
        entries(["cfg", "nonsense"], [20], seed=1)
    with pytest.raises(InputError, match="have cfg among"):
        entries(["npo"], [20], seed=1)


def test_cells_of_a_budget_cost_the_same_and_are_drawn_once(tmp_path, methods):
    wanted, painter = entries(list(methods), [20, 12], seed=1), Painter()
    cells = list(fill(table(tmp_path), arms(tmp_path), painter, wanted))
    for entry, cell in zip(wanted, cells, strict=True):
        assert entry.budget - 3 < cell["rows_per_dot"] <= entry.budget
        assert (cell["method"], cell["variant"], cell["budget"]) == (entry.method, dict(entry.variant), entry.budget)
        assert cell["told"] == entry.variant.get("strength")
    steps = {entry.name: cell["steps"] for entry, cell in zip(wanted, cells, strict=True)}
    assert steps["cfg-b20-g2"] == 10
    assert steps["cfg-b20-g1"] == 20
    assert steps["pag-strength1-b20-g3"] == 6
    assert steps["interval-b12-g2"] == 8
    count = len(drawn)
    (tmp_path / "cells" / "cfg-b20-g1.json").unlink()
    again = list(fill(table(tmp_path), arms(tmp_path), painter, wanted))
    assert [{**cell, "seconds": 0} for cell in again] == [{**cell, "seconds": 0} for cell in cells]
    assert 1 < len(drawn) - count <= 6  # counting rows for that one cell, and drawing it
    with pytest.raises(InputError, match="made with 120 samples"):
        list(fill(table(tmp_path, 90), arms(tmp_path), painter, wanted))


def test_what_cannot_fit_is_refused_before_it_is_drawn(tmp_path, methods):
    methods["pag"] = replace(methods["pag"], make=making(lambda step: 9 if step else 1))
    with pytest.raises(InputError, match="no number of steps comes near 12 rows"):
        list(fill(table(tmp_path), arms(tmp_path), Painter(), entries(["cfg", "pag"], [12], seed=1)))
    assert not list((tmp_path / "cells").glob("pag*"))


def test_all_are_compared_with_plain_guidance_at_its_best_scale(tmp_path, methods):
    wanted, painter, drawing = entries(["cfg", "pag"], [20], seed=1), Painter(), table(tmp_path)
    list(
        fill(drawing, arms(tmp_path), painter, [entry for entry in wanted if entry.scale < 3 or entry.method != "cfg"])
    )
    (cells,) = by_budget(drawing.folder).values()
    assert best_plain(cells, drawing.world)["scale"] == 2.0
    pair_up(drawing, cells)
    (cells,) = by_budget(drawing.folder).values()
    assert [cell["against"] and cell["against"]["scale"] for cell in cells] == [2.0, None, 2.0, 2.0]
    assert all("against_cfg" not in cell for cell in cells)
    expected = against(
        drawing.world, *(drawing.scores_of(*one) for one in (("pag-strength1-b20", 3.0), ("cfg-b20", 2.0)))
    )
    assert cells[2]["against"]["accuracy_change"] == pytest.approx(expected["accuracy_change"], rel=1e-5)
    list(fill(drawing, arms(tmp_path), painter, wanted))  # a better scale is drawn later
    pair_up(drawing, by_budget(drawing.folder)[20])
    cells = by_budget(drawing.folder)[20]
    assert [cell["against"] and cell["against"]["scale"] for cell in cells] == [3.0, 3.0, None, 3.0, 3.0]
    for file in drawing.scores.iterdir():
        file.unlink()
    before = {path.name: path.stat().st_mtime_ns for path in drawing.folder.iterdir()}
    pair_up(drawing, by_budget(drawing.folder)[20])  # nothing is new, so no scores are asked for
    assert {path.name: path.stat().st_mtime_ns for path in drawing.folder.iterdir()} == before
    broken = json.loads((drawing.folder / "pag-strength2-b20-g3.json").read_text())
    (drawing.folder / "pag-strength2-b20-g3.json").write_text(json.dumps({**broken, "against": None}))
    with pytest.raises(InputError, match="is missing"):
        pair_up(drawing, by_budget(drawing.folder)[20])


def test_trained_weights_are_compared_with_the_same_without_them(tmp_path, methods):
    methods["npo_interval"] = replace(methods["interval"], untrained="interval", variants=({"beta": 1.0},))
    drawing = table(tmp_path)
    list(fill(drawing, arms(tmp_path), Painter(), entries([*methods], [20], seed=1)))
    pair_up(drawing, by_budget(drawing.folder)[20])
    cells = {(cell["method"], cell["scale"]): cell for cell in by_budget(drawing.folder)[20]}
    assert cells["npo", 2.0]["against"]["scale"] == 3.0
    compared = {
        key[0]: (cell[UNTRAINED]["arm"], cell[UNTRAINED]["scale"]) for key, cell in cells.items() if cell[UNTRAINED]
    }
    assert compared == {"npo": ("cfg-b20", 2.0), "npo_interval": ("interval-b20", 2.0)}
    assert cells["npo", 2.0][UNTRAINED]["accuracy_change"] == [0, 0, 0]  # this painter's weights do nothing


def test_a_control_has_the_methods_steps_and_a_seed_its_own_weights(tmp_path, methods, monkeypatch):
    asked = []

    def make_control(arms, method, variant, control, *, scale, steps):
        asked.append((arms.seed, method, dict(variant), control, scale, steps))
        return making(lambda _: 3)(arms, variant)[0], {"k": 0.5}

    monkeypatch.setattr("selfnpo_core.experiments.equal_cost.make_control", make_control)
    drawing = table(tmp_path)
    point = {"method": "npo", "variant": {"beta": 1.0}, "scale": 2.0, "budget": 20, "seed": 7}
    wanted = [Entry(**point), Entry(**point, control="rest")]
    whole, control = fill(drawing, arms(tmp_path), Painter(), wanted)
    assert wanted[1].name == "npo.rest-beta1-s7-b20-g2"
    assert asked == [(7, "npo", {"beta": 1.0}, "rest", 2.0, 10)]
    assert (whole["steps"], control["steps"], control["rows_per_dot"]) == (10, 10, 30.0)
    assert (control["control"], control["k"]) == ("rest", 0.5)
    check_budget([whole, control], drawing.world)
    assert [cell["arm"] for cell in by_budget(drawing.folder)[20]] == [wanted[0].arm, wanted[1].arm]


def test_unequal_cost_is_refused():
    def cell(**other):
        return {
            "arm": "x",
            "scale": 2.0,
            "budget": 20,
            "samples": 9,
            "scheduler": "DDIM",
            "rows_per_dot": 18.0,
            **other,
        }

    world = Dots()
    check_budget([cell(), cell(rows_per_dot=20.0)], world)
    for other, match in (
        ({"budget": 40, "rows_per_dot": 40.0}, "budget 20 and 40"),
        ({"samples": 10}, "samples 9 and 10"),
        ({"scheduler": "Euler"}, "scheduler DDIM and Euler"),
        ({"rows_per_dot": 17.0}, "ran 17 rows a dot, not 20"),
        ({"rows_per_dot": 20.5}, "ran 20.5 rows a dot, not 20"),
    ):
        with pytest.raises(InputError, match=match):
            check_budget([cell(), cell(**other)], world)
