"""`selfnpo-image report`: of a run, and of what `compare` and `evaluate` left."""

import json
import shutil
from pathlib import Path

import pytest
from tests.core.reporting.pages import Page, evaluate
from tests.image.conftest import Command

from selfnpo_core.weights.npo_folder import LORA_FILE


def test_from_training_to_a_card_that_says_what_was_measured(
    finished_run: Path, folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run, pairs = tmp_path / "run", tmp_path / "pairs"
    shutil.copytree(finished_run, run)
    drawn = ("--model", folder, "--npo", run, "--prompt", "a fox", "--prompt", "a <b>boat", "--steps", 2)
    assert command("compare", *drawn, "--output", pairs) == 0
    assert command("report", pairs) == 0
    page = Page((pairs / "report.html").read_text(encoding="utf-8"))
    assert page.outside == []
    assert len(page.pictures) == 4
    assert "a <b>boat seed 1" in page.text
    assert "no score of a single sample" in page.text
    assert command("compare", *drawn, "--output", pairs) == 0  # goes on beside the report
    evaluate(pairs / "with", pairs / "without", run / "figures.json")
    assert command("report", run) == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "2 of 2, finished" in page.text
    assert "from “without” to “with”" in page.text
    assert page.outside == []
    assert "| red ↑ |" in (run / "npo" / "README.md").read_text(encoding="utf-8")
    assert "what was measured is in" in capsys.readouterr().out


def test_what_inspect_keeps_is_shown(
    finished_run: Path, folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    asked = ("--model", folder, "--trajectories", 2)
    assert command("inspect", run, "--keep") == 2
    assert command("inspect", run, "--keep", *asked[:2], "--trajectories", 0) == 2
    shutil.copy(run / "npo" / LORA_FILE, tmp_path)
    assert command("inspect", tmp_path / LORA_FILE, "--keep", *asked) == 2
    assert "lies in no run" in capsys.readouterr().err
    assert command("inspect", run, "--keep", *asked, "--json") == 0
    sentence = json.loads(capsys.readouterr().out)["decomposition"]["sentence"]
    assert command("report", run, "--markdown", tmp_path / "page.md") == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert f"What the weights change in the null branch is {sentence}." in page.text
    assert page.outside == []
    assert "| timestep | ‖Δ‖/‖d‖ |" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_a_mistake(tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("report", tmp_path) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfnpo-image: error: ")]
    assert len(said) == 1
    assert "is neither a run nor a folder of samples" in said[0]
    assert not list(tmp_path.iterdir())
