"""The main commands as processes of their own where little is set up: no UTF-8, a terminal of 1252, no network.

One chain of commands a program, on its demo model, with prompts that such a place cannot show.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
PROMPTS = ("ein großer Bär läuft „schnell“ → ∞", "два лиса ε ↓ 🦊")
TERMINAL = {"PYTHONIOENCODING": "cp1252"}
LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}
HOMES = {"terminal": TERMINAL, "locale": LOCALE, "offline": OFFLINE}
TINY = ("steps=2", "batch_size=2", "pool_size=16", "grid_steps=4", "sample_every=1", "device=cpu", "learning_rate=0.01")
SETTINGS = tuple(word for setting in TINY for word in ("--set", setting))
DRAW = ("--steps", "2", "--device", "cpu")
CHAIN: dict[str, tuple[str, ...]] = {
    "help": ("--help",),
    "help of a command": ("train", "--help"),
    "models": ("models",),
    "dry run": ("train", "--model", "demo", "--prompts", "p.jsonl", "--config", "paper", *SETTINGS, "--dry-run"),
    "train": ("train", "--model", "demo", "--prompts", "p.txt", "--config", "paper", *SETTINGS, "--output", "run"),
    "resume": ("train", "--output", "run", "--resume", "--set", "steps=3"),
    "inspect": ("inspect", "run", "--model", "demo", "--trajectories", "0"),
    "sample": ("sample", "--model", "demo", "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], *DRAW, "--output", "a"),
    "sample with": ("sample", "--model", "demo", "--npo", "run", "--prompts", "p.txt", *DRAW, "--output", "b"),
    "compare": ("compare", "--model", "demo", "--npo", "run", "--prompts", "p.csv", *DRAW, "--output", "c"),
    "sample a caption": ("sample", "--model", "demo", "--prompt", "{caption}", *DRAW, "--output", "d"),
    "evaluate": ("evaluate", "{drawn}", "--metrics", "{metric}", "--json", "figures.json"),
    "report": ("report", "c", "--markdown", "c.md"),
    "report of a run": ("report", "run"),
    "export": ("export", "--npo", "run", "--format", "diffusers", "--output", "exported"),
}
PROGRAMS = {
    "image": (("-m", "selfnpo_image.cli"), {"metric": "oracle", "drawn": "d"}),  # which reads captions of its world
    "video": (("-m", "selfnpo_video.cli"), {"metric": "motion", "drawn": "b"}),
}
CAPTION = "a small cat on a blue ground"
MADE = ("run/npo/npo_config.json", "a/metadata.jsonl", "c/metadata.jsonl", "figures.json", "c/report.html", "exported")


def write_prompts(place: Path) -> None:
    (place / "p.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    (place / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in PROMPTS), encoding="utf-8"
    )
    (place / "p.csv").write_text("prompt\n" + "\n".join(PROMPTS), encoding="utf-8")


def process(words: Sequence[str], place: Path, home: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO", "HF_"))}
    settings = {**kept, "HF_HOME": str(place / "hub"), "OMP_NUM_THREADS": "1", **home}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=place, env=settings, capture_output=True, check=False, timeout=900)


def wrong(done: subprocess.CompletedProcess[bytes]) -> str | None:
    told = done.stderr.decode("utf-8", "replace")
    if done.returncode != 0 or "Traceback" in told or "Logging error" in told:
        return f"exit {done.returncode}: {told[-600:]}"
    return None


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["image", pytest.param("video", marks=pytest.mark.exhaustive)])
def test_the_main_commands(name: str, tmp_path: Path) -> None:
    """With all of it at once: what is written is UTF-8, whatever the place is."""
    write_prompts(tmp_path)
    start, names = PROGRAMS[name]
    found = {}
    for step, words in CHAIN.items():
        words = [word.format(caption=CAPTION, **names) for word in words]
        found[step] = wrong(process([*start, *words], tmp_path, {**TERMINAL, **LOCALE, **OFFLINE}))
    assert not {step: told for step, told in found.items() if told}
    assert not [name for name in MADE if not (tmp_path / name).exists()]
    records = [json.loads(line) for line in (tmp_path / "a/metadata.jsonl").read_text("utf-8").splitlines()]
    assert tuple(record["prompt"] for record in records) == PROMPTS
    assert (tmp_path / "run/prompts.txt").read_text("utf-8").split("\n")[:2] == list(PROMPTS)
    assert "with against without" in (tmp_path / "c.md").read_text("utf-8")
    assert PROMPTS[0] in (tmp_path / "c/report.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("home", HOMES)
def test_each_alone(home: str, tmp_path: Path) -> None:
    write_prompts(tmp_path)
    start, _ = PROGRAMS["image"]
    for step in ("models", "sample"):
        assert not wrong(process([*start, *CHAIN[step]], tmp_path, HOMES[home]))


@pytest.mark.slow
def test_the_tools(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    for tool, words in {
        "render.py": ("--model", "demo", "--prompts", "p.txt", *DRAW, "--scales", "2", "--output", "clips"),
        "evaluate.py": ("--family", "video", "clips", "--metrics", "motion", "--json", "figures.json"),
        "train.py": ("--family", "video", *CHAIN["dry run"][1:]),
    }.items():
        assert not wrong(process([str(TOOLS / tool), *words], tmp_path, {**TERMINAL, **LOCALE, **OFFLINE}))
    assert PROMPTS[0] in (tmp_path / "clips/index.html").read_text("utf-8")


def test_a_path_that_the_place_cannot_name(tmp_path: Path) -> None:
    """Prompts are text there, but a file's name is not."""
    done = process(
        [*PROGRAMS["image"][0], "sample", "--model", "Bär", "--prompt", "x", "--output", "o"], tmp_path, LOCALE
    )
    (line,) = done.stderr.decode("utf-8", "replace").splitlines()
    assert done.returncode == 2
    assert "is no path where the system is set up for ascii: set PYTHONUTF8=1" in line
