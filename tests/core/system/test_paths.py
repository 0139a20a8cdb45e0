"""Paths as people write them, and what they become or are refused with; text of other systems; other systems' files."""

import errno
import fcntl
import json
import os
from pathlib import Path

import psutil
import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.system import files, locks
from selfnpo_core.system.files import file_aside, named_aside, read_json, save_tensors, write_json, write_text
from selfnpo_core.system.locks import FolderLock
from selfnpo_core.system.paths import check_file, check_folder, user_path

LONG = "x" * 300


def test_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/models/x") == tmp_path / "models/x"
    assert user_path("~") == tmp_path
    assert user_path("models/~x") == Path("models/~x")
    (tmp_path / "~kept").touch()  # a name of its own
    assert user_path("~kept") == Path("~kept")


@pytest.mark.parametrize(
    ("name", "words"),
    [("~nobody-here/x", "no user nobody-here"), (LONG, "too long"), (f"a/{LONG}", "too long"), ("a\0b", "zero byte")],
)
def test_what_can_be_no_path_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        user_path(name)


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    check_folder(tmp_path / "new" / "deep")
    check_file(tmp_path / "new.json", "--json")
    for path, words in ((tmp_path / "file", "is a file"), (tmp_path / "file/in/it", "cannot be made")):
        with pytest.raises(InputError, match=words):
            check_folder(path)
    for path in (tmp_path, tmp_path / "none/x.json", tmp_path / "file/x.json"):
        with pytest.raises(InputError, match=r"--json .* cannot be written"):
            check_file(path, "--json")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="cannot be written to"):
        check_folder(tmp_path / "new")
    with pytest.raises(InputError, match="read-only"):
        check_file(tmp_path / "new.json", "--json")


@pytest.mark.parametrize("letter", ["x", "ä"])
def test_the_longest_names_can_be_written(tmp_path, letter):
    name = letter * (250 // len(letter.encode())) + ".json"
    write_text(tmp_path / name, "1")
    assert (tmp_path / name).read_text() == "1"
    with file_aside(tmp_path / name) as aside:
        aside.write_text("2")
    with named_aside(tmp_path / name) as aside:
        aside.write_text("3")
    assert (tmp_path / name).read_text() == "3"
    assert len(list(tmp_path.iterdir())) == 1


def test_names_that_are_no_utf8_stay_in_json(tmp_path):
    write_json(tmp_path / "x.json", {"file": "b\udcffr", "word": "Bär ↓"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"file": "b\udcffr", "word": "Bär ↓"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_with_a_mark(tmp_path, encoding):
    (tmp_path / "x.json").write_bytes('{"a": "ü"}'.encode(encoding))
    assert read_json(tmp_path / "x.json") == {"a": "ü"}


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, "1" * 5000, "{"])
def test_what_json_cannot_hold_is_one_kind_of_error(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "x.json")


def test_only_what_is_open_for_writing_is_synced(tmp_path, monkeypatch):
    """Windows refuses the rest."""
    synced = []

    def fsync(handle: int) -> None:
        if (
            os.path.isfile(f"/proc/self/fd/{handle}")
            and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        ):
            raise OSError(errno.EBADF, "Bad file descriptor")
        synced.append(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_text(tmp_path / "x", "1")
    with files.written_aside(tmp_path / "folder") as aside:
        save_tensors(aside / "x.safetensors", {})
    assert len(synced) == 5


def test_asking_for_a_lock_ends_no_process(tmp_path, monkeypatch):
    """On Windows `os.kill(pid, 0)` does, and there is no `fcntl`."""
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks.os, "kill", lambda *_: pytest.fail("os.kill was called"))
    alive = {4242}
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: pid in alive)
    (tmp_path / ".lock").write_text(json.dumps({"pid": 4242, "host": locks.socket.gethostname()}))
    with pytest.raises(InputError, match="process 4242"):
        FolderLock(tmp_path / ".lock").acquire()
    alive.clear()
    lock = FolderLock(tmp_path / ".lock")
    lock.acquire()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    lock.release()
