"""Tables with a column of prompts, as data sets and benchmarks of pictures and clips have them.

.jsonl .ndjson   an object or a string a line        .json   a list of these, an object that holds one, or columns
.csv .tsv        cells under a line of names; a comma, a semicolon or a tab between them
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.system.text import RepeatedKey, parse_json

COLUMNS = ("prompt", "prompts", "caption", "captions", "text", "prompt_en")
"""Names of the column, the first that is there; large and small letters are one."""
ENHANCED = ("enhanced_prompt", "refined_prompt", "upsampled_prompt", "enhanced", "refined", "extended_prompt")
"""Beside an original, the prompt that was written for a model to be given; taken where none of the above is there."""

PICTURES = ("image", "image_path", "image_name", "first_frame")
"""Names of the column of pictures beside prompts, the first that is there."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A string, or cells by their columns. place: for messages, such as `line 3`."""

    place: str
    value: Any


def rows_of(path: Path, text: str) -> list[Row]:
    """At least one row, each a string or a mapping. Every mistake is a one-line `InputError`."""
    rows = READERS[path.suffix.lower()](path, text)
    if not rows:
        raise InputError(f"prompts file {path} has no prompts in it: give one with at least one row")
    for row in rows:
        if not isinstance(row.value, str | Mapping):
            what = type(row.value).__name__
            raise InputError(f"{row.place} of the prompts file {path} is {what}: write an object or a string there")
    if len({isinstance(row.value, str) for row in rows}) > 1:
        raise InputError(f"prompts file {path} mixes strings and objects: write all rows alike")
    return rows


def choose_column(path: Path, rows: Sequence[Row], wanted: str | None) -> str:
    """The name of the column of prompts, as the file writes it. wanted: what the user asked for."""
    names = _names(rows)
    found = f"its columns are {', '.join(names[:12]) or 'none'}{', …' if len(names) > 12 else ''}"
    for known in (wanted,) if wanted is not None else (*COLUMNS, *ENHANCED):
        alike = [name for name in names if name == known] or [
            name for name in names if name.strip().lower() == known.lower()
        ]
        if len(alike) > 1:
            raise InputError(f"prompts file {path} has the column '{known}' twice ({found}): rename one")
        if alike:
            return alike[0]
    if wanted is not None:
        raise InputError(f"prompts file {path} has no column '{wanted}': {found}")
    raise InputError(
        f"prompts file {path} has no column {', '.join(COLUMNS[:-1:2])}: {found}; choose one as {path.name}:COLUMN"
    )


def choose_pictures(rows: Sequence[Row]) -> str | None:
    """The name of the column of pictures, as the file writes it, if there is one."""
    names = {name.strip().lower(): name for name in reversed(_names(rows))}
    return next((names[known] for known in PICTURES if known in names), None)


def _names(rows: Sequence[Row]) -> list[str]:
    """Of columns, once."""
    keys = (key for row in rows if isinstance(row.value, Mapping) for key in row.value)
    return [str(key) for key in dict.fromkeys(keys)]


def looks_like_table(lines: Sequence[str]) -> str | None:
    """The ending that a file of these lines should have, if it is surely a table."""
    if all(line.startswith("{") and _is_object(line) for line in lines):
        return ".jsonl"
    if lines[0] in ("[", "{") or (len(lines) == 1 and lines[0].startswith(("[{", '["')) and _is_json(lines[0])):
        return ".json" if _is_json("\n".join(lines)) else None
    for delimiter, ending in (("\t", ".tsv"), (",", ".csv"), (";", ".csv")):
        cells = [cell.strip().strip('"') for cell in lines[0].split(delimiter)]
        named = any(cell.lower() in COLUMNS for cell in cells) and all(
            re.fullmatch(r"\w[\w.-]*", cell) for cell in cells
        )
        if len(cells) > 1 and named and all(delimiter in line for line in lines):
            return ending
    return None


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _is_object(text: str) -> bool:
    return _is_json(text) and isinstance(parse_json(text), dict)


def _json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in _filled(path, re.split(r"\r\n|\r|\n", text)):
        try:
            rows.append(Row(place=f"line {number}", value=parse_json(line, once=True)))
        except RepeatedKey as error:
            raise InputError(f"line {number} of the prompts file {path} has {error}: leave one of the two") from None
        except ValueError as error:
            detail = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise InputError(f"line {number} of the prompts file {path} is not JSON ({detail}): mend it") from None
    return rows


def _filled(path: Path, lines: Sequence[str]) -> list[tuple[int, str]]:
    """Numbers and lines, without blank ones at the beginning and the end."""
    filled = [number for number, line in enumerate(lines) if line.strip()]
    kept = list(enumerate(lines, start=1))[filled[0] : filled[-1] + 1] if filled else []
    for number, line in kept:
        if not line.strip():
            raise InputError(f"line {number} of the prompts file {path} is empty: remove it, or write a prompt there")
    return kept


def _json(path: Path, text: str) -> list[Row]:
    try:
        value = parse_json(text, once=True)
    except RepeatedKey as error:
        raise InputError(f"prompts file {path} has {error}: rename one, or leave one of the two") from None
    except ValueError as error:
        if len(text.splitlines()) > 1 and all(_is_json(line) for line in text.splitlines() if line.strip()):
            return _json_lines(path, text)
        detail = " ".join(str(error).split())
        raise InputError(f"prompts file {path} is not JSON ({detail}): mend it, or give text") from None
    values = _list_in(path, value)
    return [Row(place=f"entry {number}", value=each) for number, each in enumerate(values, start=1)]


def _list_in(path: Path, value: Any) -> list[Any]:
    """The rows of a list, of an object with one list of them, of columns, of an object of rows by their ids, or of an
    object that is one row."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and value:
        lists = {key: each for key, each in value.items() if isinstance(each, list)}
        others = {key: each for key, each in value.items() if key not in lists}
        told = [each for each in lists.values() if each and isinstance(each[0], dict) and _usual(each[0])]
        if _usual(others):
            written = {key: each for key, each in others.items() if isinstance(each, str)}
            if _usual(written) and not told and not _usual(lists):
                return [value]
        elif len(told) == 1:
            return told[0]
        elif _usual(lists) and len({len(each) for each in lists.values()}) == 1:
            return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
        elif len(lists) == 1:
            return next(iter(lists.values()))
        if all(isinstance(each, dict) for each in value.values()):
            return list(value.values())
    keys = ", ".join(list(value)[:12]) if isinstance(value, dict) else type(value).__name__
    raise InputError(
        f"prompts file {path} holds no list of prompts (found: {keys or 'nothing'}): give a list of objects"
    )


def _usual(keys: Iterable[str]) -> bool:
    return any(key.strip().lower() in (*COLUMNS, *ENHANCED) for key in keys)


def _cells(path: Path, text: str) -> list[Row]:
    head = text.lstrip("\r\n").splitlines()[0] if text.strip() else ""
    delimiter = "\t" if path.suffix.lower() == ".tsv" or ("\t" in head and "," not in head) else ","
    if delimiter == "," and ";" in head and "," not in head:
        delimiter = ";"  # as spreadsheets write it where the comma is for decimals
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            lines.append((reader.line_num, cells))
    except csv.Error as error:
        raise InputError(
            f"line {reader.line_num} of the prompts file {path} is no row of cells ({error}): mend its quotes"
        ) from None
    filled = [place for place, (_, cells) in enumerate(lines) if any(cell.strip() for cell in cells)]
    if not filled:
        return []
    lines = lines[filled[0] : filled[-1] + 1]
    names = [cell.strip() for cell in lines[0][1]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"prompts file {path} has the column '{twice}' twice: rename one")
    rows = []
    for number, cells in lines[1:]:
        if len(cells) > len(names):
            raise InputError(
                f"line {number} of the prompts file {path} has {len(cells)} cells under {len(names)} names: put quotes "
                f"around cells that hold '{delimiter}'"
            )
        rows.append(Row(place=f"line {number}", value=dict(zip(names, cells, strict=False))))
    if not rows:
        raise InputError(f"prompts file {path} has names of columns ({', '.join(names[:12])}) and no rows: write some")
    return rows


READERS: Mapping[str, Callable[[Path, str], list[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _cells,
    ".tsv": _cells,
}
"""By the name's ending, in small letters."""
