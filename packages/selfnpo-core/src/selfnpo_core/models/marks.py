"""Model folders whose JSON was saved with a byte-order mark, or as UTF-16, neither of which the libraries read."""

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from selfnpo_core.system.text import MARKS, decoded


def without_marks(folder: Path) -> Path:
    """The folder, or if JSON in it has a mark, one of the same files whose JSON has none, until the process ends."""
    marked = [file for file in (*folder.glob("*.json"), *folder.glob("*/*.json")) if _is_marked(file)]
    if not marked:
        return folder
    place = Path(tempfile.mkdtemp(dir=_held().name)) / (folder.name or "model")
    for file in (*folder.glob("*"), *folder.glob("*/*")):
        there = place / file.relative_to(folder)
        if file.is_dir():
            there.mkdir(parents=True, exist_ok=True)
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        if file in marked:
            there.write_bytes(_plain(file.read_bytes()))
        else:
            _put(file.absolute(), there)
    return place


@cache
def _held() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="selfnpo-")


def _is_marked(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(4).startswith(tuple(mark for mark, _ in MARKS))
    except OSError:
        return False


def _plain(data: bytes) -> bytes:
    try:
        return decoded(data).encode()
    except UnicodeError:
        return data  # it is refused where it is read


def _put(file: Path, there: Path) -> None:
    try:
        os.symlink(file, there)
    except OSError:  # Windows wants a privilege for it
        shutil.copyfile(file, there)
