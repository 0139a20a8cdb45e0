"""tools/compare_methods.py: shards make the cells, the plain command the page; a second run draws nothing."""

import importlib.util
from pathlib import Path

import pytest

from selfnpo_core.commands.running import run

SCRIPT = Path(__file__).parents[2] / "tools" / "compare_methods.py"


def compare(*words):
    spec = importlib.util.spec_from_file_location("compare_methods", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return run(module.main, list(words), name="compare_methods.py")


def test_shards_then_the_page(tmp_path, capsys):
    asked = ["--world", "image", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), "--samples", "4"]
    asked += ["--budget", "4,6", "--scales", "3", "--arms", "cfg,rescale"]
    assert compare(*asked, "--shard", "0/2") == 0
    cells = tmp_path / "out" / "cells"
    assert sorted(path.stem for path in cells.iterdir()) == ["cfg-b4-g3", "cfg-b6-g3"]
    assert not (tmp_path / "out" / "README.md").exists()
    assert compare(*asked, "--shard", "1/2") == 0
    before = {path.name: path.read_text() for path in cells.iterdir()}
    assert len(before) == 4
    assert compare(*asked) == 0
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "## 4 rows a picture" in page
    assert "## 6 rows a picture" in page
    assert "Not in the tables: Self-NPO, Neon, " in page
    assert (tmp_path / "out" / "pareto.png").exists()
    written = {path.name: path.stat().st_mtime_ns for path in cells.iterdir()}
    assert compare(*asked) == 0
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == page
    assert {path.name: path.stat().st_mtime_ns for path in cells.iterdir()} == written
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--shard", "2/2"], "shard '2/2' is not K/N"),
        (["--budget", "many"], "'many' is no list of numbers"),
        (["--arms", "npo"], "have cfg among"),
        (["--arms", "cfg,magic"], "'magic' is unknown"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, told):
    assert compare("--world", "image", "--work", str(tmp_path), "--output", str(tmp_path / "out"), *words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
