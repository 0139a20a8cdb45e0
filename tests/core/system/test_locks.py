"""A folder's lock: one holder, named in the message, and free again however its process ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.system.locks import FolderLock

HOLD = """
import sys
from pathlib import Path
from selfnpo_core.system.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
input()
"""


def test_a_held_lock_names_its_process_and_host(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / ".lock")
    lock.acquire()
    assert json.loads((tmp_path / ".lock").read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    for _ in range(2):  # asking changes nothing
        with pytest.raises(InputError) as error:
            FolderLock(tmp_path / ".lock").acquire()
        assert f"(process {os.getpid()} on {socket.gethostname()}): {tmp_path};" in str(error.value)
    lock.release()
    lock.release()  # nothing more
    assert (tmp_path / ".lock").read_text() == ""
    FolderLock(tmp_path / ".lock").acquire()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {holder.pid}"):
        FolderLock(tmp_path / ".lock").acquire()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid  # its name is still there
    FolderLock(tmp_path / ".lock").acquire()


@pytest.mark.parametrize("text", ["half a na", "[1]", "{}", ""])
def test_what_is_no_name_is_nobodys_lock(text: str, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(text)
    lock = FolderLock(tmp_path / ".lock")
    lock.acquire()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    lock.release()


def test_where_a_file_system_has_no_locks_another_host_counts_as_alive(tmp_path: Path, monkeypatch) -> None:
    def unsupported(file, flags):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("selfnpo_core.system.locks.fcntl.flock", unsupported)
    (tmp_path / ".lock").write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere"}))
    with pytest.raises(InputError, match="on elsewhere"):
        FolderLock(tmp_path / ".lock").acquire()
    (tmp_path / ".lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    FolderLock(tmp_path / ".lock").acquire()  # our own earlier one
