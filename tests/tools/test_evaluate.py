"""tools/evaluate.py: two processes make the figures of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.image.conftest import selfnpo

from selfnpo_core.commands.running import run
from selfnpo_image.demo import world

SCRIPT = Path(__file__).parents[2] / "tools" / "evaluate.py"


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    root = tmp_path_factory.mktemp("arms")
    (root / "prompts.txt").write_text("\n".join(world.training_captions(10)))
    for name, scale in (("a", 3), ("b", 1)):
        words = ("--prompts", root / "prompts.txt", "--steps", 2, "--guidance-scale", scale, "--batch-size", 10)
        assert selfnpo("sample", "--model", "demo", *words, "--output", root / name) == 0
    return root


def words(arms: Path, cache: Path, target: Path) -> list[str]:
    """One sample at a time, since a batch's size is seen in the last digits."""
    given = [arms / "a", "--against", arms / "b", "--metrics", "oracle,fid", "--feature-network", "oracle"]
    return [str(word) for word in (*given, "--batch-size", 1, "--cache", cache, "--json", target)]


def figures(target: Path) -> dict:
    return json.loads(target.read_text())["metrics"]


def alone(*arguments: str) -> int:
    """In this process."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import evaluate
    finally:
        sys.path.pop(0)
    return run(evaluate.evaluate, arguments, name="evaluate.py")


@pytest.mark.slow
def test_two_processes_equal_one(arms, tmp_path):
    both = []
    for rank in ("1", "0"):
        settings = {**os.environ, "RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(SCRIPT), "--family", "image", *words(arms, tmp_path / "b", tmp_path / "b.json")]
        both.append(subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert alone(*words(arms, tmp_path / "a", tmp_path / "a.json")) == 0
    outputs = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert figures(tmp_path / "a.json") == figures(tmp_path / "b.json")
    assert outputs[0][0] == ""  # the first process alone tells the figures
    assert "accuracy" in outputs[1][0]


def test_options_are_the_familys_own(arms, tmp_path):
    assert alone(*words(arms, tmp_path / "cache", tmp_path / "r.json")) == 0
    assert figures(tmp_path / "r.json")["fid"]["value"][0] > 0
    assert alone("--family", "video", str(arms / "a"), "--metrics", "fid") == 2
    assert alone("--family", "image", "--no-such") == 2
