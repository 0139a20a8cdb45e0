"""One process writes into a folder at a time: the one that holds its lock, a file with its process id and host.

The `filelock` package alone does not do here: its lock file has no room for the owner's name (older versions empty the
file when they open it), it fails where a file system has no locks, and it trusts a lock that another host does not see.
"""

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

from selfnpo_core.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: the process id in the file has to do, see `_alone`
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Held from `acquire` to `release`, or to the end of the process, however it ends."""

    def __init__(self, path: Path):
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            with nullcontext() if fcntl is not None else _alone(self.path):
                self._claim(file)
                file.truncate(0)
                file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
                file.flush()
        except BaseException:
            file.close()
            raise
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def _claim(self, file: IO[str]) -> None:
        file.seek(0)
        owner = _owner(file.read())
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if owner.get("host", socket.gethostname()) == socket.gethostname():
                    return  # the system gives a dead process's lock back, so a name still in the file is stale
            except BlockingIOError:
                raise self._in_use(owner) from None
            except OSError:
                pass  # a file system without locks
        if owner and _alive(owner):
            raise self._in_use(owner)

    def _in_use(self, owner: Mapping[str, Any]) -> InputError:
        who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        return InputError(
            f"output folder in use by another run ({who}): {self.path.parent}; choose another --output, wait for "
            f"it, or delete {self.path.name} there if that process is gone"
        )


def _alone(path: Path) -> AbstractContextManager[Any]:
    """Where the system has no `flock`: one process of this host at a time asks who holds a lock, and takes it."""
    from filelock import FileLock

    name = hashlib.sha256(str(path.absolute()).encode("utf-8", "backslashreplace")).hexdigest()[:32]
    return FileLock(Path(tempfile.gettempdir()) / f"selfnpo-{name}.lock")


def _owner(text: str) -> dict[str, Any]:
    try:
        owner = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _alive(owner: Mapping[str, Any]) -> bool:
    """Whether the owner lives. One on another host, which cannot be asked, counts as alive."""
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int):
        return True
    if pid == os.getpid():
        return False  # our own earlier run, or a process before us that had our number
    import psutil  # `os.kill(pid, 0)`, which asks elsewhere, ends the process on Windows

    return bool(psutil.pid_exists(pid))
