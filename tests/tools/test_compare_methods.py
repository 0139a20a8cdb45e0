"""tools/compare_methods.py: shards make the cells, the plain command the pages; a second run draws nothing."""

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


@pytest.mark.exhaustive
def test_shards_of_one_set_then_of_the_other_then_the_pages(tmp_path, capsys):
    asked = ["--world", "image", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), "--samples", "4"]
    asked += ["--budget", "4,6", "--scales", "3", "--arms", "rescale,cfg"]
    assert compare(*asked, "--stage", "choose", "--shard", "0/2") == 0
    chosen, claimed = (tmp_path / "out" / name / "cells" for name in ("choose", "claim"))
    assert sorted(path.stem for path in chosen.iterdir()) == ["cfg-b4-g3", "cfg-b6-g3"]
    assert not (tmp_path / "out" / "choose" / "README.md").exists()
    assert compare(*asked, "--stage", "claim") == 2
    assert "2 of 4 cells of the first set are not drawn" in capsys.readouterr().err
    assert compare(*asked, "--stage", "choose", "--shard", "1/2") == 0
    assert len(list(chosen.iterdir())) == 4
    assert compare(*asked, "--stage", "claim", "--shard", "0/1") == 0
    assert {path.stem for path in claimed.iterdir()} >= {"cfg-b4-g3", "cfg-b6-g3"}
    assert not (tmp_path / "out" / "README.md").exists()
    assert compare(*asked) == 0
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "## 4 rows a picture" in page
    assert "## 6 rows a picture" in page
    assert "Not in the tables: " in (tmp_path / "out" / "choose" / "README.md").read_text(encoding="utf-8")
    for made in ("frontier.png", "claims.json", "choose/pareto.png"):
        assert (tmp_path / "out" / made).exists()
    written = {path: path.stat().st_mtime_ns for folder in (chosen, claimed) for path in folder.iterdir()}
    assert compare(*asked) == 0
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == page
    assert {path: path.stat().st_mtime_ns for folder in (chosen, claimed) for path in folder.iterdir()} == written
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--stage", "choose", "--shard", "2/2"], "shard '2/2' is not K/N"),
        (["--budget", "many"], "'many' is no list of numbers"),
        (["--shard", "0/2"], "give --stage choose"),
        (["--stage", "claim"], "cells of the first set are not drawn"),
        (["--arms", "apg"], "have cfg among"),
        (["--arms", "cfg,magic"], "'magic' is unknown"),
        (["--controls", "rest,magic"], "there is no magic"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, told):
    assert compare("--world", "image", "--work", str(tmp_path), "--output", str(tmp_path / "out"), *words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
