"""Runs of the real command on a tiny CogVideoX that are killed, damaged, or left alone by the disk or a process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import cogvideox
from tests.tools.launching import ROOT, command, deepspeed, environment, free_port

SETTINGS = {
    "steps": 8,
    "batch_size": 2,
    "grad_accumulation": 2,
    "pool_size": 12,
    "grid_steps": 3,
    "rank": 4,
    "checkpoint_every": 2,
    "mixed_precision": "no",
    "gradient_checkpointing": "false",
    "sample_every": 0,
    "ema_decay": 0.9,
    "max_drift": 9.0,
    "frames": 9,
    "height": 64,
    "width": 64,
    "device": "cpu",
    "trackers": "[]",
}


def sets(**changes: object) -> list[str]:
    keys = (word for key, value in {**SETTINGS, **changes}.items() for word in ("--set", f"{key}={value}"))
    return ["--config", "paper", *keys]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "video"
    cogvideox("2b").save_pretrained(folder)
    return folder


def last_state(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint, and of the result."""
    newest = max((run / "checkpoints").glob("step-*"))
    files = [*newest.glob("*.safetensors"), *(run / "npo").glob("*.safetensors")]
    return {f"{path.stem}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def history(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same_end(whole: Path, other: Path) -> None:
    one, two = last_state(whole), last_state(other)
    assert one.keys() == two.keys()
    assert not [name for name in one if not torch.equal(one[name], two[name])]
    assert history(whole) == history(other)
    leftovers = [path for path in other.rglob(".*") if path.suffix in (".partial", ".old")]
    assert not leftovers


def kill_chains(model: Path, folder: Path, kills: int, seed: int, **changes: object) -> list[dict]:
    words = ["--seed", str(seed), "--kills", str(kills), "--model", str(model), *sets(**changes)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.killing", str(folder), *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(facts) >= kills + 1
    for chain in {fact["chain"] for fact in facts}:
        assert_same_end(folder / "whole", folder / chain)
    return facts


@pytest.mark.slow
def test_five_kills_and_one_between_two_renames_cost_nothing_but_time(model, tmp_path):
    kill_chains(model, tmp_path, kills=5, seed=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", ["lora", "full"])
def test_forty_kills(model, tmp_path, what):
    kill_chains(model, tmp_path, kills=40, seed=2, train=what)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    return finished(model, tmp_path_factory.mktemp("whole") / "run")


def finished(model: Path, run: Path, *more: str) -> Path:
    done = subprocess.run(
        alone(model, run, *more), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return run


def alone(model: Path, run: Path, *more: str) -> list[str]:
    words = ["--model", str(model), "--output", str(run), *sets(), *more]
    return command(words, 1, launcher=False)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped bit", "cut short"])
def test_a_damaged_checkpoint_is_known_by_its_hash_and_the_one_before_is_used(whole, model, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    victim = run / "checkpoints/step-000008/teacher.safetensors"
    content = bytearray(victim.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 2] ^= 1
    else:
        content = content[: len(content) // 2]
    victim.write_bytes(content)
    done = subprocess.run(
        alone(model, run, "--resume"), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step-000008 is not whole (teacher.safetensors has" in done.stderr
    assert "resuming from" in done.stderr
    assert "step-000006" in done.stderr
    assert_same_end(whole, run)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of a few MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is for root: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # tensors read from it may still be mapped


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_its_last_checkpoint_whole(whole, model, small_disk):
    run, ballast = small_disk / "run", small_disk / "ballast"
    finished(model, run, "--set", "steps=4")
    used = shutil.disk_usage(small_disk)
    size = sum(path.stat().st_size for path in (run / "checkpoints/step-000004").iterdir())
    ballast.write_bytes(bytes(used.free - size // 2))  # half a checkpoint is left
    done = subprocess.run(
        alone(model, run, "--resume"), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr[-3000:]
    said = done.stderr.strip().splitlines()[-1]
    assert "error: the disk is full: free some space, then go on with --resume" in said
    assert "step-000004, is whole" in said
    ballast.unlink()
    assert_same_end(whole, finished(model, run, "--resume"))


def pair(model: Path, run: Path, *more: str, **changes: object) -> list[subprocess.Popen[str]]:
    """Two processes that train together, without a launcher that would end one when the other dies."""
    words = ["--model", str(model), "--output", str(run), *sets(grad_accumulation=1, **changes), *more]
    port = str(free_port())
    return [
        subprocess.Popen(
            command(words, 1, launcher=False),
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
            | {"MASTER_PORT": port},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def wait_for_updates(run: Path, process: subprocess.Popen[str], count: int = 1) -> None:
    deadline = time.monotonic() + 200
    metrics = run / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(
        f"no update was made: {process.communicate()[1][-3000:] if process.poll() is not None else ''}"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "number"),
    [
        ("auto", signal.SIGSTOP),
        ("zero3", signal.SIGKILL),
        pytest.param("auto", signal.SIGKILL, marks=pytest.mark.exhaustive),
        pytest.param("zero3", signal.SIGSTOP, marks=pytest.mark.exhaustive),
    ],
)
def test_a_lost_process_ends_the_other_with_a_message(model, tmp_path, engine, number):
    run = tmp_path / "run"
    survivor, lost = pair(model, run, engine=engine, steps=100_000, checkpoint_every=2, process_timeout=10)
    try:
        wait_for_updates(run, survivor, 3)
        lost.send_signal(number)
        started = time.monotonic()
        _, said = survivor.communicate(timeout=90)
        assert time.monotonic() - started < 60
    finally:
        for process in (survivor, lost):
            process.kill()
    assert survivor.returncode == 1, said[-3000:]
    assert "another process of this run has ended or hangs" in said
    assert "is whole" in said.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_of_two_processes_saves_and_ends_both(model, tmp_path, number, code):
    run = tmp_path / "run"
    processes = pair(model, run, steps=100_000, checkpoint_every=0)
    wait_for_updates(run, processes[0], 2)
    processes[1].send_signal(number)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [code, code], said
    assert "stopped and saved after update" in said[0].strip().splitlines()[-1]
    (saved,) = (run / "checkpoints").glob("step-*")
    assert int(saved.name.removeprefix("step-")) == len(history(run))


def signal_all(launcher: subprocess.Popen[str]) -> None:
    """As Ctrl-C in a terminal: the launcher and the processes get it, and the launcher hands it on once more."""
    os.killpg(launcher.pid, signal.SIGINT)


def signal_launcher(launcher: subprocess.Popen[str]) -> None:
    launcher.send_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "stop"), [(command, signal_launcher), (deepspeed, signal_all)])
def test_a_signal_to_the_launcher_saves_and_ends_with_an_error(model, tmp_path, start, stop):
    run = tmp_path / "run"
    words = ["--model", str(model), "--output", str(run), *sets(grad_accumulation=1, steps=100_000, checkpoint_every=0)]
    launcher = subprocess.Popen(
        start(words, 2), env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_updates(run, launcher)
    stop(launcher)
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode not in (0, None)
    assert "stopped and saved after update" in said
    (saved,) = (run / "checkpoints").glob("step-*")
    assert int(saved.name.removeprefix("step-")) == len(history(run))
