"""Folders in which runs keep for one another what is costly to make: where they lie, and how large they may be.

    FOLDER/<digest of what made them>/*.safetensors

Files get their name when they are whole, and nothing is locked: any process may remove any of them at any time.
"""

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.system.paths import user_path

MOST_BYTES = 32 << 30
"""Of a whole cache: beyond it the files that were not used for longest go, but none that the run itself uses."""
_ABANDONED_S = 24 * 3600


def cache_folder(key: str, setting: str | None, name: str) -> Path | None:
    """By a recipe's `key`: a folder, "auto" for one of this name in the user's own cache, `None` for none."""
    if setting is None:
        return None
    try:
        folder = _users_own() / name if setting == "auto" else user_path(setting)
    except RuntimeError:
        raise InputError(f"{key}: there is no home folder; choose a folder, or null for none") from None
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{key} {folder} is a file: choose a folder, or null for none")
    return folder


def sweep(root: Path, used: Collection[Path], most: int = MOST_BYTES) -> None:
    """Remove what is oldest while a cache is too large, and what killed processes left half-written."""
    with suppress(OSError):
        for aside in root.glob("**/.*.partial"):
            if time.time() - aside.stat().st_mtime > _ABANDONED_S:
                remove(aside)
        found = {path: path.stat() for path in root.glob("*/*.safetensors")}
        size = sum(stat.st_size for stat in found.values())
        for path in sorted(found.keys() - set(used), key=lambda path: found[path].st_mtime):
            if size <= most:
                break
            remove(path)
            size -= found[path].st_size


def touch(path: Path) -> None:
    """It was used now."""
    with suppress(OSError):
        os.utime(path)


def remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def digest_of(value: Any) -> str:
    """sha256 of what json can hold; of anything else, of its text."""
    return sha256_of([json.dumps(value, sort_keys=True, default=str).encode()])


def checksum(key: str, tensors: Iterable[Tensor], outlines: Iterable[Tensor] | None = None) -> str:
    """Of tensors' bytes, and of what they are. outlines: their shapes and types, if no two are to be held at once."""
    if outlines is None:
        outlines = tensors = tuple(tensors)
    kind = f"{key} {[(str(outline.dtype), list(outline.shape)) for outline in outlines]}".encode()
    numbers = (tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data for tensor in tensors)
    return sha256_of(chain([kind], numbers))


def sha256_of(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _users_own() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfnpo"
