"""Methods that name layers of the denoiser, on the shipped video model."""

import torch

from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.equal_cost import MOST_ROWS, entries, fill
from selfnpo_core.experiments.methods import METHODS, TrainedArms
from selfnpo_core.worlds.world import Task
from selfnpo_video.demo import moving


def test_layers_of_the_video_model_are_weakened(tmp_path):
    demo = moving.demo()
    task = Task.draw(demo.world, 2, seed=1)
    table = Table(world=demo.world, folder=tmp_path / "cells", scores=tmp_path / "scores", task=task, steps=0)
    wanted = entries(["cfg", "pag", "slg"], [13], seed=0, scales=[3.0])
    wanted = [entry for entry in wanted if entry.variant == METHODS[entry.method].variants[0]]
    clips = []
    for entry, cell in zip(
        wanted, fill(table, TrainedArms(demo=demo, work=tmp_path, seed=0), demo.pipeline(), wanted), strict=True
    ):
        assert 13 - MOST_ROWS < cell["rows_per_clip"] <= 13
        clips.append(table.kept(entry.arm, entry.scale))
    for k, some in enumerate(clips):
        assert not any(torch.equal(some, other) for other in clips[:k]), wanted[k].name
