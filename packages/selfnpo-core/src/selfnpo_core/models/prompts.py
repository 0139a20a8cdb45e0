"""Prompts from a file: text with one a line, or a table with a column of them.

Text is taken literally, `#` and quotes too. Blank lines at the beginning and the end are left out. One in the middle is
refused: it may be a lost prompt, and the numbers of samples would no longer be those of lines. Prompts that come twice
are kept. The name's ending says what a file is; see `selfnpo_core.models.prompt_tables` for tables.
"""

import logging
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.models.prompt_tables import READERS, Row, choose_column, choose_pictures, looks_like_table, rows_of
from selfnpo_core.system.foreign import foreign_text
from selfnpo_core.system.paths import user_path
from selfnpo_core.system.text import decoded, is_text

log = logging.getLogger(__name__)

_OTHER = {
    "a Parquet table": (".parquet", ".arrow", ".feather"),
    "a spreadsheet": (".xlsx", ".xls", ".ods", ".numbers"),
    "compressed": (".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".7z"),
    "YAML": (".yaml", ".yml"),
    "a document": (".docx", ".doc", ".odt", ".rtf", ".pdf", ".html", ".htm", ".xml"),
    "a pickle": (".pkl", ".pickle", ".pt", ".npy", ".npz"),
}
"""What a name's ending says of a file that is not read here."""
_BEGINNINGS = {
    b"PAR1": "a Parquet table",
    b"PK\x03\x04": "compressed",
    b"\x1f\x8b": "compressed",
    b"%PDF": "a document",
}


def read_prompts(name: str | Path, *, apart: Collection[str] = ()) -> list[str]:
    """The prompts of a file, without surrounding blanks. Every mistake is a one-line `InputError`.

    name: a file, or FILE:COLUMN for another column of a table than the usual one. apart: columns of which nothing is
    said here, as the caller reads them too.
    """
    path, column = _split(name)
    text = _readable(path)
    if path.suffix.lower() in READERS:
        return _of_table(path, text, column, apart)
    if column is not None:
        raise InputError(
            f"prompts file {path} has no columns: leave :{column} out, or give a {', '.join(READERS)} file"
        )
    prompts = _of_lines(path, text)
    if ending := looks_like_table(prompts):
        raise InputError(f"prompts file {path} is a table, not a prompt a line: give it the ending {ending}")
    return prompts


def picture_column(name: str | Path) -> str | None:
    """The column of pictures that a file has beside its prompts, if it is a table with one."""
    path, _ = _split(name)
    return choose_pictures(rows_of(path, _readable(path))) if path.suffix.lower() in READERS else None


def read_pictures(name: str | Path, column: str) -> list[Path]:
    """The picture beside each prompt of a table, such as a clip's first frame.

    Paths are relative to the table. Every mistake is a one-line `InputError`; the pictures are not opened.
    """
    path, _ = _split(name)
    rows = rows_of(path, _readable(path))
    return [_picture(path, f"{row.place} in '{column}'", row.value.get(column)) for row in rows]


def _picture(path: Path, place: str, value: Any) -> Path:
    words = "write a picture's path there, relative to the table"
    if value is None or value == "":
        raise InputError(f"{place} of the prompts file {path} is empty: {words}")
    if not is_text(value):
        what = "half a character" if isinstance(value, str) else type(value).__name__
        raise InputError(f"{place} of the prompts file {path} is {what}, not a path: {words}")
    if re.match("[a-z]{2,}:", value):
        raise InputError(f"{place} of the prompts file {path} is {value[:60]}, which is not fetched: {words}")
    picture = path.parent / user_path(value.strip())
    if not picture.is_file():
        raise InputError(f"{place} of the prompts file {path} is {value}, and there is no {picture}: {words}")
    return picture


def kept_prompts(path: Path) -> list[str]:
    """Those of a run, as it has written them: one a line, whatever they look like."""
    return _of_lines(path, _text(path, _bytes(path)))


def _split(name: str | Path) -> tuple[Path, str | None]:
    """FILE, or FILE:COLUMN where there is no file of the whole name."""
    path = user_path(name)
    file, colon, column = str(path).rpartition(":")
    if colon and column and not path.exists() and Path(file).is_file():
        return Path(file), column
    return path, None


def _readable(path: Path) -> str:
    """The text of a file that is no other kind than those that are read."""
    _refuse_kind(path, path.suffix.lower())
    data = _bytes(path)
    kind = next((what for mark, what in _BEGINNINGS.items() if data.startswith(mark)), None)
    if kind is not None:
        raise InputError(_not_read(path, kind))
    if words := foreign_text(data[:64]):
        raise InputError(f"prompts file {path} {words}")
    return _text(path, data)


def _refuse_kind(path: Path, ending: str) -> None:
    for what, endings in _OTHER.items():
        if ending in endings:
            raise InputError(_not_read(path, what))


def _not_read(path: Path, what: str) -> str:
    return f"prompts file {path} is {what}, which is not read: save it as text, one prompt a line, or as .jsonl or .csv"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"prompts file {path} does not exist: give a text file with one prompt a line") from None
    except IsADirectoryError:
        raise InputError(f"prompts file {path} is a folder: give a text file with one prompt a line") from None
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the prompts file {path}: {detail}") from None


def _text(path: Path, data: bytes) -> str:
    try:
        text = decoded(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"prompts file {path} is not UTF-8 (line {line}): save it as UTF-8 text") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"prompts file {path} is not text (a zero byte in line {line}): save it as UTF-8 text")
    return text


def _of_lines(path: Path, text: str) -> list[str]:
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    filled = [number for number, line in enumerate(lines) if line]
    if not filled:
        raise InputError(f"prompts file {path} has no prompts in it: write one a line")
    prompts = lines[filled[0] : filled[-1] + 1]
    if "" in prompts:
        number = filled[0] + prompts.index("") + 1
        raise InputError(f"line {number} of the prompts file {path} is empty: remove it, or write a prompt there")
    return prompts


def _of_table(path: Path, text: str, wanted: str | None, apart: Collection[str]) -> list[str]:
    rows = rows_of(path, text)
    if all(isinstance(row.value, str) for row in rows) and wanted is None:
        values: list[Any] = [row.value for row in rows]
        where = ""
    else:
        column = choose_column(path, rows, wanted)
        values, where = [row.value.get(column) for row in rows], f" in '{column}'"
        _say_column(path, column, rows, apart)
    return [_prompt(path, row.place + where, value) for row, value in zip(rows, values, strict=True)]


def _say_column(path: Path, column: str, rows: Sequence[Row], apart: Collection[str]) -> None:
    """Which column is used, where another could have been meant."""
    names = dict.fromkeys(key for row in rows for key in row.value)
    others = [str(name) for name in names if name != column and name not in apart]
    if others and os.environ.get("RANK", "0") == "0":
        few = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
        log.info("prompts: column '%s' of %s; not used: %s (FILE:COLUMN chooses another)", column, path, few)


def _prompt(path: Path, place: str, value: Any) -> str:
    """One line without surrounding blanks; lines within a cell become one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{place} of the prompts file {path} is empty: remove the row, or write a prompt there")
    if not isinstance(value, str):
        raise InputError(
            f"{place} of the prompts file {path} is {type(value).__name__}, not text: write a prompt there"
        )
    if not is_text(value):
        raise InputError(f"{place} of the prompts file {path} holds half a character: write it as UTF-8")
    if "\0" in value:
        raise InputError(f"{place} of the prompts file {path} holds a zero byte: remove it")
    return " ".join(part.strip() for part in re.split(r"[\r\n]+", value.strip()))
