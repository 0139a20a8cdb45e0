"""Runs of `selfnpo-video train` that are killed at seeded moments and gone on with, until they end.

    python -m tests.tools.killing FOLDER --kills 8 --seed 1 OPTIONS_OF_TRAIN

One process imports everything and forks a child for each attempt, which gets SIGKILL either after a random time or at
a random one of its changes to files. What a person would do follows: the same command, with --resume once there is a
run. FOLDER/whole is the run that nobody killed; FOLDER/chain-N are the others. Prints one JSON line about each kill.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from selfnpo_core.commands.running import run
from selfnpo_core.training import holds_run
from selfnpo_video.cli import selfnpo_video

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
OnChange = Callable[[str, tuple[Any, ...]], None]


def watch(folder: Path, on_change: OnChange) -> None:
    """Call before every change that this process makes to files below the folder, until it ends."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and isinstance(arguments[0], str) and f"{arguments[0]}/".startswith(f"{folder}/"):
            reading = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if not reading:
                on_change(event, arguments)

    sys.addaudithook(hook)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(folder: Path, words: list[str], on_change: OnChange | None = None, seconds: float | None = None) -> int:
    """One run of the command in a child; its status as `os.waitpid` gives it."""
    child = os.fork()
    if not child:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        if on_change is not None:
            watch(folder, on_change)
        command = ["train", "--output", str(folder), *words, *(["--resume"] if holds_run(folder) else [])]
        os._exit(run(selfnpo_video, command, name="selfnpo-video"))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def finish(folder: Path, words: list[str]) -> None:
    status = attempt(folder, words)
    assert status == 0, (folder, status, Path(f"{folder}.log").read_text()[-2000:])


def count_changes(folder: Path, words: list[str]) -> tuple[int, float]:
    """Make the run that nobody kills; how often it changed a file, and its seconds."""
    counted = Path(f"{folder}.changes")
    counted.touch()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        with open(counted, "a") as file:
            file.write(f"{event} {arguments[0]}\n")

    started = time.perf_counter()
    assert attempt(folder, words, count) == 0, Path(f"{folder}.log").read_text()[-2000:]
    return len(counted.read_text().splitlines()), time.perf_counter() - started


def killed_at_change(number: int) -> OnChange:
    left = [number]

    def count_down(event: str, arguments: tuple[Any, ...]) -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    return count_down


def between_renames(event: str, arguments: tuple[Any, ...]) -> None:
    """The old folder has left its name, the new one has not got it yet."""
    if event == "os.rename" and str(arguments[0]).endswith(".npo.partial"):
        old = Path(arguments[1]).with_name(".npo.old")
        if old.is_dir():
            assert not Path(arguments[1]).exists()
            die()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=8, help="in all")
    parser.add_argument("--chain", type=int, default=4, help="at most, of one run")
    parser.add_argument("--seed", type=int, default=0)
    own, words = parser.parse_known_args()
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    changes, seconds = count_changes(own.folder / "whole", words)
    rng, kills, chain = random.Random(own.seed), 0, 0
    while kills < own.kills:
        folder = own.folder / f"chain-{chain}"
        for _ in range(own.chain):
            moment: dict[str, Any]
            if rng.random() < 0.5:
                moment = {"change": rng.randint(1, changes)}
                status = attempt(folder, words, killed_at_change(moment["change"]))
            else:
                moment = {"seconds": round(rng.uniform(0, seconds), 3)}
                status = attempt(folder, words, seconds=moment["seconds"])
            if not os.WIFSIGNALED(status):  # the run ended before its moment
                assert status == 0, Path(f"{folder}.log").read_text()[-2000:]
                break
            kills += 1
            _tell(chain=folder.name, **moment, updates=_updates(folder))
        finish(folder, words)
        chain += 1
    folder = own.folder / "between-renames"
    status = attempt(folder, words, between_renames)
    assert os.WIFSIGNALED(status)
    _tell(chain=folder.name, updates=_updates(folder))
    finish(folder, words)


def _updates(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
