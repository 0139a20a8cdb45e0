"""Paths as people write them: with `~`, too long, of no one, or where nothing can be written."""

import errno
import os
from pathlib import Path

from selfnpo_core.errors import InputError

LONGEST_NAME = 255
"""Bytes that file systems give a name."""


def user_path(name: str | Path) -> Path:
    """A path with `~` and `~user` as the home folder. Raises `InputError`, one line, for what can be no path."""
    text = str(name)
    if "\0" in text:
        raise InputError(f"{text!r} is no path: it has a zero byte in it")
    path = Path(name)
    if text.startswith("~") and not os.path.lexists(text):
        try:
            path = path.expanduser()
        except RuntimeError:
            user = path.parts[0].removeprefix("~")
            raise InputError(
                f"{text}: there is no user {user} with a home folder" if user else f"{text}: there is no home folder"
            ) from None
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):  # also in a folder that is not there yet
        raise InputError(f"{path}: {os.strerror(errno.ENAMETOOLONG)}")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except OSError as error:  # the name is too long, or its links go round in circles
        raise InputError(f"{path}: {error.strerror}") from None
    return path


def check_folder(path: str | Path, what: str = "output") -> None:
    """Raise `InputError` unless this is, or can become, a folder to write into. Asked before anything expensive."""
    place = user_path(path)
    there = next((each for each in (place, *place.absolute().parents) if os.path.lexists(each)), None)
    if there is None:
        return
    if not there.is_dir():
        if there == place:
            raise InputError(f"{what} {place} is a file: choose a folder")
        raise InputError(f"{what} {place} cannot be made: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{what} {place}: {there} cannot be written to; choose another folder")


def check_file(path: str | Path, option: str) -> None:
    """Raise `InputError` unless a file of this name can be written in a folder that is there."""
    target = user_path(path)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise InputError(f"{option} {target} cannot be written: give a file in a folder that is there")
    if not os.access(target.absolute().parent, os.W_OK | os.X_OK):
        raise InputError(f"{option} {target} cannot be written: its folder is read-only; choose another")
