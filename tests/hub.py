"""A hub's cache as its client leaves it, without a network."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def go_offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """As HF_HUB_OFFLINE=1 and HF_HUB_CACHE would at the start of a process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def put(cache: Path, repo: str, files: Path | Mapping[str, Path]) -> Path:
    """A repository with the files of a folder, or with these; returns its snapshot."""
    if isinstance(files, Path):
        files = {path.relative_to(files).as_posix(): path for path in files.rglob("*") if path.is_file()}
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for name, path in files.items():
        there = place / "snapshots" / COMMIT / name
        there.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, there)
    return place / "snapshots" / COMMIT
