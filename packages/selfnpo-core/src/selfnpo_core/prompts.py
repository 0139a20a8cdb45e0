"""Prompts from a file: UTF-8, one a line, blank lines left out, everything else taken literally."""

import re
from pathlib import Path

from selfnpo_core.errors import InputError


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file, without surrounding blanks. Every mistake is a one-line `InputError`."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"prompts file {path} does not exist: give a text file with one prompt a line") from None
    except IsADirectoryError:
        raise InputError(f"prompts file {path} is a folder: give a text file with one prompt a line") from None
    except OSError as error:
        raise InputError(f"cannot read the prompts file {path}: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"prompts file {path} is not UTF-8 (line {line}): save it as UTF-8 text") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"prompts file {path} is not text (a zero byte in line {line}): save it as UTF-8 text")
    prompts = [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if not prompts:
        raise InputError(f"prompts file {path} has no prompts in it: write one a line")
    return prompts
