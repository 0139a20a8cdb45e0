"""What a file is that is not what its name says, by how it begins: what downloads leave, and what was renamed."""

from collections.abc import Sequence
from pathlib import Path

_TEXTS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"),
    (b"<!doctype", "is a web page: download the file itself, which may want a login or another address"),
    (b"<html", "is a web page: download the file itself, which may want a login or another address"),
)
_BEGINNINGS = (
    *_TEXTS,
    (b"access to model", "is the hub's refusal, not the file: accept the model's terms there, and download it again"),
    (b"invalid username or password", "is the hub's refusal, not the file: log in, and download it again"),
    (b"entry not found", "is the hub's refusal, not the file: correct its address, and download it again"),
    (b"gguf", "holds quantised weights (GGUF), whatever its name says: give it in 16 or 32 bits, as .safetensors"),
    (b"pk\x03\x04", "is a zip archive or a pickle, whatever its name says: unpack it, or convert it to .safetensors"),
    (b"\x80\x02", "is a pickle, which can run code when loaded: convert it to .safetensors"),
)
"""In small letters."""
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of ISO/IEC 23008-12."""


def foreign_text(head: bytes) -> str | None:
    """Of a file of text by its first bytes: the rest of a message that begins with its name, or `None`."""
    return _told(head, _TEXTS)


def foreign_kind(path: Path) -> str | None:
    """The rest of a message that begins with the file's name; `None` for what is not known, or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return None
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return "is a HEIC picture, as telephones make them, which is not read: save it as PNG or JPEG"
    return _told(head, _BEGINNINGS) if head else "is empty: make or download it again"


def _told(head: bytes, beginnings: Sequence[tuple[bytes, str]]) -> str | None:
    plain = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((words for mark, words in beginnings if plain.startswith(mark)), None)
