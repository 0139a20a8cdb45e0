"""What of a folder are samples, and what is passed over, by the kinds of its files.

Names that begin with a dot are nobody's samples, and are not spoken of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from selfnpo_core.sampling.medium import Medium
from selfnpo_core.sampling.sample_folder import FIGURES, METADATA, REPORT
from selfnpo_core.system.pictures import frame_files, holds_frames

_OURS = (METADATA, REPORT, FIGURES)
NO_SUFFIX, FOLDER = "without a suffix", "folder"


@dataclass(kw_only=True)
class Listing:
    """files: in the order of their names; folders among them are clips, a picture a frame."""

    files: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def listing(root: Path, medium: Medium, known: Collection[str] | None = None) -> Listing:
    """What lies in a folder, and in the folders within, also where those are links.

    known: names of what lies in it and is a sample whatever its kind; then folders within are not looked into.
    """
    found = Listing()
    _walk(root, medium, known, found, seen={root.resolve()})
    found.files.sort()
    return found


def told(passed_over: Mapping[str, int]) -> str:
    """Such as "3 .heic, 1 folder"."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(passed_over.items()))


def _walk(folder: Path, medium: Medium, known: Collection[str] | None, found: Listing, seen: set[Path]) -> None:
    for path in _visible(folder):
        if known is not None and path.name in known:
            found.files.append(path)
        elif not path.is_dir():
            _file(path, medium, found)
        elif "" in medium.suffixes and holds_frames(path):
            found.files.append(path)
            frames = set(frame_files(path))
            found.passed_over.update(_kind(file) for file in _visible(path) if file not in frames)
        elif known is not None:
            found.passed_over[FOLDER] += 1
        elif path.resolve() not in seen:
            seen.add(path.resolve())
            _walk(path, medium, known, found, seen)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in _OURS)


def _file(path: Path, medium: Medium, found: Listing) -> None:
    if path.suffix and path.suffix.lower() in medium.suffixes and medium.is_one(path):
        found.files.append(path)
    else:
        found.passed_over[_kind(path)] += 1


def _kind(path: Path) -> str:
    return FOLDER if path.is_dir() else path.suffix.lower() or NO_SUFFIX
