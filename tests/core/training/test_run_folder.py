"""Who may write into a run folder, and what an output folder may hold."""

import json
import os
import socket
import subprocess
import sys

import pytest
from tests.core.training.toy import PROMPTS, toy_recipe

from selfnpo_core import InputError
from selfnpo_core.system.locks import FolderLock
from selfnpo_core.training import holds_run, new_run_folder
from selfnpo_core.training.run_folder import RunFolder

FACTS = {"family": "toy", "base_hash": "abc"}


def open_folder(path, *, resume=False, **changes) -> RunFolder:
    return RunFolder.open(path, toy_recipe(**changes), PROMPTS, FACTS, resume=resume)


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path):
    with open_folder(tmp_path / "run"):
        assert json.loads((tmp_path / "run/.lock").read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
        for resume in (False, True):
            with pytest.raises(InputError, match=f"in use by another run .process {os.getpid()} on"):
                open_folder(tmp_path / "run", resume=resume)
    open_folder(tmp_path / "run", resume=True).close()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / ".lock").write_text(json.dumps({"pid": dead.pid, "host": socket.gethostname()}))
    open_folder(tmp_path).close()


def test_without_file_locks_the_process_id_decides(tmp_path, monkeypatch):
    monkeypatch.setattr("selfnpo_core.system.locks.fcntl", None)
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        owner = {"pid": sleeper.pid, "host": socket.gethostname()}
        (tmp_path / ".lock").write_text(json.dumps(owner))
        with pytest.raises(InputError, match=f"process {sleeper.pid}"):
            FolderLock(tmp_path / ".lock").acquire()
    finally:
        sleeper.communicate(b"\n")
    lock = FolderLock(tmp_path / ".lock")
    lock.acquire()
    lock.release()
    assert (tmp_path / ".lock").read_text() == ""


def test_the_lock_of_another_host_is_respected(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(InputError, match=r"process 1 on elsewhere.*delete \.lock"):
        open_folder(tmp_path)


def test_another_run_is_not_written_over(tmp_path):
    open_folder(tmp_path / "run").close()
    before = (tmp_path / "run/config.yaml").read_bytes()
    with pytest.raises(InputError, match="holds another run: continue it with --resume"):
        open_folder(tmp_path / "run", steps=99)
    assert (tmp_path / "run/config.yaml").read_bytes() == before


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty \(thesis.txt\)"):
        open_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_folder(tmp_path / "file")


def test_nothing_to_resume(tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        open_folder(tmp_path / "run", resume=True)
    assert not holds_run(tmp_path / "run")


def test_metrics_after_the_checkpoint_and_torn_lines_are_cut(tmp_path):
    with open_folder(tmp_path / "run") as folder:
        for step in (1, 2, 3):
            folder.add_metrics({"step": step, "loss": 0.5})
        with open(folder.metrics, "a") as file:
            file.write('{"step": 4, "lo')
        folder.cut_metrics(2)
        folder.add_metrics({"step": 3, "loss": 0.25})
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25}]


def test_new_run_folders_count_up(tmp_path):
    names = [new_run_folder(tmp_path / "runs", "demo").name for _ in range(3)]
    assert names == ["demo-1", "demo-2", "demo-3"]
