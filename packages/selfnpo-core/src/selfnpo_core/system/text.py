"""Text as programs of all systems write it: UTF-8 with or without a byte-order mark, UTF-16 and UTF-32 with one."""

import codecs
import json
from pathlib import Path
from typing import Any

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decoded(data: bytes) -> str:
    """The text without its mark. Raises UnicodeDecodeError."""
    return data.decode(next((name for mark, name in MARKS if data.startswith(mark)), "utf-8"))


def read_text(path: Path) -> str:
    """A file's text. Raises OSError and UnicodeDecodeError."""
    return decoded(path.read_bytes())


class RepeatedKey(ValueError):
    """An object of JSON has a key more than once, and Python's reader would keep the last."""


def parse_json(text: str, *, once: bool = False) -> Any:
    """As `json.loads`; what is nested too deeply for it, or has too long a number, is a ValueError as well.

    once: raise `RepeatedKey` for a key that an object has twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_with_keys_once if once else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RepeatedKey(f"the key {key!r} twice in one object")
        found[key] = value
    return found


def writable(text: str) -> str:
    """JSON with names in it that are not UTF-8, such as a file's: what cannot be written is escaped, as JSON does."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_text(value: object) -> bool:
    """Whether it is a string that can be written as UTF-8: JSON's escapes can name halves of characters."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
