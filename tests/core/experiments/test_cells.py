"""Cells on disk: drawn once, six digits, paired with plain guidance."""

import json

import pytest
import torch
from tests.core.experiments.dots import Dots, Painter

from selfnpo_core.errors import InputError
from selfnpo_core.experiments.cells import Arm, Table, write_cell
from selfnpo_core.experiments.measure import plain
from selfnpo_core.worlds.world import Task

WORLD = Dots()


def table(folder, count=200):
    task = Task.draw(WORLD, count, 5)
    return Table(world=WORLD, folder=folder / "cells", scores=folder / "scores", task=task, steps=2, batch=16)


def test_cells_are_computed_once_and_paired_with_plain_guidance(tmp_path):
    painter = Painter()
    arms = [
        Arm(name="cfg", attach=plain, note={}, against=(), base=True),
        Arm(name="npo-s1", attach=plain, note={"training_seed": 1}),
    ]
    cells = [table(tmp_path).cell(painter, arm, 3.0) for arm in arms]
    assert cells[0]["against_cfg"] is None
    assert cells[1]["against_cfg"]["win_rate"][0] == 0.5  # the same samples
    assert [cell["rows_per_dot"] for cell in cells] == [2.0, 2.0]
    assert table(tmp_path).kept("cfg", 3.0).shape == (64, 3, 8, 8)
    kept = (tmp_path / "cells" / "cfg-g3.json").read_bytes()

    def refuse(_):
        raise AssertionError("a cell on disk was computed again")

    again = table(tmp_path).cell(painter, Arm(name="cfg", attach=refuse, note={}, against=(), base=True), 3.0)
    assert again == cells[0] == json.loads(kept)
    for count in (100, 300):
        with pytest.raises(InputError, match=f"made with 200 samples of 2 steps, not {count} of 2"):
            table(tmp_path, count).cell(painter, arms[0], 3.0)
    with pytest.raises(InputError, match="draw the arm cfg at scale 5 first"):
        table(tmp_path).cell(painter, Arm(name="npo-s1", attach=refuse, note={}), 5.0)
    (tmp_path / "scores" / "cfg-g3.safetensors").unlink()
    with pytest.raises(AssertionError, match="again"):  # without scores nothing could be paired with it
        table(tmp_path).cell(painter, Arm(name="cfg", attach=refuse, note={}, against=(), base=True), 3.0)


def test_the_scores_of_a_cell_are_what_the_judges_said(tmp_path):
    drawn = table(tmp_path, 40)
    cell = drawn.cell(Painter(), Arm(name="cfg", attach=plain, note={"why": "é"}, against=(), base=True), 9.0)
    scores = drawn.scores_of("cfg", 9.0)
    assert scores.right.dtype == torch.bool
    assert cell["accuracy"][0] == scores.accurate.float().mean().item() == 1.0
    assert cell["why"] == "é"
    with pytest.raises(InputError, match="is of 40 samples, not 41: remove it"):
        table(tmp_path, 41).scores_of("cfg", 9.0)


def test_a_cell_is_written_with_six_digits_and_whole(tmp_path):
    path = tmp_path / "cells" / "cfg-g3.json"
    write_cell(path, {"schema": 1, "fd": [1.23456789, 1234567.8, 0.1], "what": "ü"})
    assert json.loads(path.read_text()) == {"schema": 1, "fd": [1.23457, 1234570.0, 0.1], "what": "ü"}
    assert path.read_text().isascii()
    with pytest.raises(TypeError):
        write_cell(path, {"schema": object()})
    assert [file.name for file in path.parent.iterdir()] == ["cfg-g3.json"]
    assert json.loads(path.read_text())["schema"] == 1
