"""The compared methods on the shipped model: each runs, costs what its budget says, and does something of its own."""

import json
from dataclasses import replace

import pytest
import torch

from selfnpo_core.errors import InputError
from selfnpo_core.experiments import arms
from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.controls import CONTROLS
from selfnpo_core.experiments.equal_cost import MOST_ROWS, entries, fill
from selfnpo_core.experiments.methods import METHODS, TrainedArms
from selfnpo_core.worlds.world import Task
from selfnpo_image import shipped
from selfnpo_image.demo import pictures

SMALL = {"steps": 2, "batch_size": 4, "pool_size": 25, "grid_steps": 5, "learning_rate": 1e-3}
DEMO = pictures.demo(presets={"full": SMALL})


@pytest.mark.slow
def test_every_method_within_a_budget(tmp_path, monkeypatch):
    """The earlier state is the model itself, so autoguidance is plain guidance with no null prompt: it runs."""
    few = {"steps": 2, "batch_size": 4, "samples": 8, "learning_rate": 1e-2}
    monkeypatch.setattr(arms, "TRAINED", {name: {**changes, **few} for name, changes in arms.TRAINED.items()})
    world, pipe = DEMO.world, DEMO.pipeline()
    task = Task.draw(world, 2, seed=1)
    table = Table(world=world, folder=tmp_path / "cells", scores=tmp_path / "scores", task=task, steps=0)
    trained = TrainedArms(demo=DEMO, work=tmp_path, seed=0, earlier=shipped.FOLDER / "model")
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    every = entries(list(METHODS), [13], seed=0, scales=[3.0])
    wanted = [entry for entry in every if entry.variant == METHODS[entry.method].variants[-1]]
    wanted += [replace(entry, control=name) for entry in wanted if entry.method == "ours" for name in CONTROLS]
    pictures, steps = {}, {}
    for entry, cell in zip(wanted, fill(table, trained, pipe, wanted), strict=True):
        assert entry.control or 13 - MOST_ROWS < cell["rows_per_picture"] <= 13
        pictures[entry.name] = table.kept(entry.arm, entry.scale)
        steps[entry.control or entry.method] = cell["steps"]
    same = ("cfg", "paper", "ours", "sims", "neon", "apg", "rescale", "plus_plus", "tuned", "tuned_ours", *CONTROLS)
    assert {steps[name] for name in same} == {6}
    assert steps["pag"] == 4
    assert steps["slg"] == 6
    assert steps["interval"] == steps["ours_interval"] > 6
    names = list(pictures)
    for k, name in enumerate(names):
        for other in names[:k]:
            assert not torch.equal(pictures[name], pictures[other]), f"{name} draws what {other} draws"
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())
    figures = json.loads((table.folder / "autoguidance-b13-g3.json").read_text(encoding="utf-8"))
    assert set(figures["earlier_sha256"]) == {"text_encoder", "unet", "vae"}


def test_autoguidance_wants_an_earlier_state(tmp_path):
    trained = TrainedArms(demo=DEMO, work=tmp_path, seed=0)
    with pytest.raises(InputError, match="--earlier DIR"):
        METHODS["autoguidance"].make(trained, {})
