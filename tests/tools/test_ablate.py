"""tools/ablate.py: every change is trained and drawn once, and stands on the page beside the recipe."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from selfnpo_core.commands.running import run
from selfnpo_image.demo import pictures

SCRIPT = Path(__file__).parents[2] / "tools" / "ablate.py"


@pytest.fixture
def ablate(tmp_path):
    """The tool, its demo trained for a moment."""
    spec = importlib.util.spec_from_file_location("ablate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    demo = pictures.demo()
    short = {"steps": 2, "batch_size": 4, "samples": 8, "sample_grid_steps": 2, "trackers": []}
    presets = {train: {**preset, **short} for train, preset in demo.presets.items()}
    module.DEMOS = {"image": (lambda: replace(demo, presets=presets, steps=2), 4)}

    def go(*words):
        asked = ["--world", "image", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), *words]
        return run(module.main, asked, name="ablate.py")

    return go


def test_changes_are_trained_and_drawn_once(ablate, tmp_path):
    assert ablate("--changes", "guidance-3,half-the-updates") == 0
    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").iterdir()}
    assert set(cells) == {
        f"{arm}-g2.5" for arm in ("cfg", "recipe", "recipe-beta0.5", "guidance-3", "half-the-updates")
    }
    assert cells["guidance-3-g2.5"]["recipe"]["sample_guidance"] == 3
    assert cells["half-the-updates-g2.5"]["recipe"]["steps"] == 1
    assert cells["half-the-updates-g2.5"]["npo_sha256"] != cells["recipe-g2.5"]["npo_sha256"]
    assert {"against_cfg", "against_recipe"} <= set(cells["guidance-3-g2.5"])
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    order = [page.index(f"| {name} |") for name in ("plain guidance", "recipe", "recipe at β = ½", "guidance 3")]
    assert order == sorted(order)
    drawn = list((tmp_path / "work" / "samples").iterdir())
    assert len(drawn) == 2, "runs that draw alike share what they drew"
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert ablate("--changes", "guidance-3,half-the-updates") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()} == written


def test_mistakes_are_one_line(ablate, capsys):
    assert ablate("--changes", "magic") == 2
    told = capsys.readouterr().err
    assert "there is no change 'magic'" in told
    assert told.count("\n") == 1, "told before anything is drawn"
