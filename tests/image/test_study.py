"""`selfnpo-image study`: mistakes end with 2 and one line; results without a server; how the server ends."""

import csv
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tests.core.study.drawn import draw_arm, draw_folders
from tests.image.conftest import Command
from tests.image.serving import serving

from selfnpo_core.commands import study as study_command
from selfnpo_core.study.pairs import digest, read_pairs
from selfnpo_core.study.trials import plan_trials
from selfnpo_core.study.votes import Votes
from selfnpo_image.medium import PICTURES

DATABASE = "study-red-blue.sqlite"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where red/ and blue/ are."""
    draw_folders(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("red", "Missing argument 'DIR_B'"),
        ("red gone", "gone is no folder"),
        ("red red/../red", "are one folder"),
        ("red short", "prompt 'square <3>' with seed 73 is in the first only"),
        ("red slow", "drawn with steps 50"),
        ("red cut", "cut/00002-72.png cannot be read as a picture"),
        ("red blue --question overall", "is no KEY=TEXT"),
        ("red blue --question a=x --question a=y", "--question a is given twice"),
        ("red blue --question ü=x", "is no KEY=TEXT"),
        ("red blue --json out.json", "--json needs --results"),
        ("red blue --csv out.csv", "--csv needs --results"),
        ("red blue --results", "study-red-blue.sqlite does not exist"),
        ("red blue --limit 0", "'--limit'"),
        ("red blue --port PORT", "choose another --port, or 0"),
        ("red blue --host no.such.host.invalid", "--host no.such.host.invalid is no address here"),
        ("red blue --database gone/v.sqlite", "give a file in a folder that is there"),
        ("red blue --database red/metadata.jsonl", "cannot be used as a database"),
    ],
)
def test_mistakes(
    here: Path, command: Command, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    draw_arm(here / "short", 3, 5)
    draw_arm(here / "slow", 4, 5, steps=50)
    shutil.copytree(here / "blue", here / "cut")
    with open(here / "cut" / "00002-72.png", "r+b") as file:
        file.truncate(60)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = arguments.replace("PORT", str(taken.getsockname()[1])).split()
        assert command("study", *words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfnpo-image: error: ")]
    assert len(said) == 1
    assert message in said[0]
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_without_the_extra(here: Path, command: Command, capsys, monkeypatch) -> None:
    monkeypatch.setattr(study_command, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert command("study", "red", "blue") == 2
    assert "study needs uvicorn: pip install 'selfnpo-image[study]'" in capsys.readouterr().err


def test_results_without_a_server(here: Path, command: Command, capsys, monkeypatch) -> None:
    """Two participants who like red, and one who does not look. All but the folders is in the database."""
    pairs = read_pairs({"a": here / "red", "b": here / "blue"}, PICTURES)
    study = {"folders": digest(pairs), "pairs": 3, "seed": 2, "attention_checks": 1, "questions": [["warm", "Warmer?"]]}
    votes = Votes.open(here / DATABASE, study)
    for number in range(3):
        votes.enrol(lambda n: plan_trials(3, 1, seed=2, participant=n))
        while shown := votes.next_trial(number, 1):
            trial = shown.trial
            good = trial.left in ("a", "b") if trial.check else trial.left == "a"
            votes.add(shown, number, "warm", "left" if good != (number == 2) else "right")
    votes.close()
    assert command("study", "red", "blue", "--results", "--json", "out/r.json", "--csv", "out/v.csv") == 0
    out = capsys.readouterr().out
    assert "100.0 % [61.0, 100.0]" in out
    assert "2 participants, 2 finished; left out: 1, with 4 votes (more than 0 of 1 checks failed)" in out
    told = json.loads((here / "out" / "r.json").read_text())
    assert (told["schema"], told["arms"], told["participants"]["excluded"]) == (1, {"a": "red", "b": "blue"}, 1)
    assert [(q["key"], q["wins"], q["losses"]) for q in told["questions"]] == [("warm", 6, 0)]
    rows = list(csv.DictReader((here / "out" / "v.csv").open(newline="")))
    assert len(rows) == 12
    assert {int(row["seed"]) for row in rows} < {70, 71, 72, 73}
    assert all(row["prompt"] == f"square <{int(row['seed']) - 70}>" for row in rows)
    assert command("study", "red", "blue", "--results", "--allow-failures", "1") == 0
    assert "left out: 0" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert command("study", "red", "blue", "--results") == 0
        assert "left out: 1" in capsys.readouterr().out
        assert command("study", "red", "blue", "--port", "0") == 2
    assert "--database study-red-blue.sqlite cannot be written" in capsys.readouterr().err
    assert command("study", "blue", "red", "--results", "--database", DATABASE) == 2
    assert "holds the votes of another study (folders" in capsys.readouterr().err
    assert command("study", "red", "blue", "--port", "0", "--limit", "2") == 2
    assert "holds the votes of another study (pairs: there 3, here 2)" in capsys.readouterr().err


def test_the_server_ends_in_good_order_and_goes_on(here: Path) -> None:
    with serving(here, "--limit", "2") as server:
        assert server.link.startswith("http://127.0.0.1:")
        assert "3 pairs" in urlopen(server.link).read().decode()
        results = server.results.rsplit("/", 1)[1]
        code, out, err = server.end(signal.SIGINT)
        assert code == 0
        assert f"ended; 0 votes in {DATABASE}" in out
        assert "Traceback" not in err
        assert "GET" not in err
    with serving(here, "--limit", "2", "--host", "0.0.0.0") as server:  # the same study, now open to others
        port, token = server.link.removesuffix("/").rsplit(":", 1)[1].split("/")
        assert len(token) == 22
        assert server.results.endswith(f":{port}/{token}/results/{results}")
        assert urlopen(f"http://127.0.0.1:{port}/{token}/").status == 200
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://127.0.0.1:{port}/")
        assert server.end(signal.SIGTERM)[0] == 0
    assert not [path for path in here.iterdir() if path.name not in ("red", "blue", DATABASE)]


def test_a_shown_picture_is_its_pixels_only(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", "negative weights 1.0")
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png", pnginfo=notes)
    PICTURES.plain(tmp_path / "x.png", tmp_path / "y.png")
    assert b"negative weights" in (tmp_path / "x.png").read_bytes()
    assert b"negative weights" not in (tmp_path / "y.png").read_bytes()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "y.png")), pixels)
    assert PICTURES.size(tmp_path / "x.png") == (40, 48)
    PICTURES.damage(tmp_path / "x.png", tmp_path / "z.png")
    assert PICTURES.size(tmp_path / "z.png") == (40, 48)
