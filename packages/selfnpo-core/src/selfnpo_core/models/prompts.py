"""Prompts from a file: UTF-8, one a line, everything taken literally.

Blank lines at the beginning and the end are left out. One in the middle is refused: it may be a lost prompt, and the
numbers of samples would no longer be those of lines.
"""

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
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    filled = [number for number, line in enumerate(lines) if line]
    if not filled:
        raise InputError(f"prompts file {path} has no prompts in it: write one a line")
    prompts = lines[filled[0] : filled[-1] + 1]
    if "" in prompts:
        number = filled[0] + prompts.index("") + 1
        raise InputError(f"line {number} of the prompts file {path} is empty: remove it, or write a prompt there")
    return prompts
