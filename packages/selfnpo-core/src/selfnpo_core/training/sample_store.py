"""Finished samples that earlier runs drew: whoever wants the very same ones does not draw them again.

    FOLDER/<what and how>/drawn.json             of what and how they were drawn, for people to read
    FOLDER/<what and how>/A-B.safetensors        samples number A to B − 1, as in a run's latents/

What and how is the sha256 of all that decides the numbers: base, prompts and their embeddings, seed, guidance, steps,
the sampler, precision, libraries, device. Not of how many there are: sample n is the same in a run of 100 and of 1,000.
A file is used only if the checksum that it carries is that of its tensors. It lies in store and run folder as one file
with two names (a hard link), and as a copy where the file system does not allow that; so neither needs the other.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfnpo_core.system.caches import MOST_BYTES, cache_folder, checksum, digest_of, remove, sweep, touch
from selfnpo_core.system.files import file_aside, write_tensors

log = logging.getLogger(__name__)
NAMES = ("x0", "prompt")


def write_samples(file: Path, x0: Tensor, prompt: Tensor) -> None:
    """x0: (n, *S) in float32, prompt: (n,)."""
    write_tensors(file, {"x0": x0, "prompt": prompt}, {"sha256": checksum("samples", (x0, prompt))})


def is_sound(file: Path, shape: list[int]) -> bool:
    """Whether a file holds samples of this shape, (n, *S), as they were written."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = [opened.get_tensor(name) for name in NAMES]
            known = (opened.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return False
    return list(tensors[0].shape) == shape and known == checksum("samples", tensors)


class SampleStore:
    """The part of a store that holds samples of one kind. Several processes and runs may use it at once."""

    def __init__(self, root: Path, about: Mapping[str, Any]):
        self.root, self.about = root, dict(about)
        self.folder = root / digest_of(about)[:32]
        self._used: set[Path] = set()
        self._writes = True

    @classmethod
    def of(cls, setting: str | None, about: Mapping[str, Any]) -> "SampleStore | None":
        """By the recipe's `samples_cache`."""
        root = cache_folder("samples_cache", setting, "samples")
        return None if root is None else cls(root, about)

    def take(self, rows: range, file: Path, shape: list[int]) -> bool:
        """Bring samples of this shape, (n, *S), to `file`. Whether they were there."""
        stored = self._file(rows)
        if not stored.exists():
            return False
        if not is_sound(stored, shape):
            log.warning("%s in the samples cache is damaged: it is made anew", stored)
            remove(stored)
            return False
        try:
            _link(stored, file)
        except FileNotFoundError:  # swept away since
            return False
        self._use(stored)
        return True

    def give(self, rows: range, file: Path) -> None:
        """Keep what was drawn."""
        if not self._writes:
            return
        stored = self._file(rows)
        try:
            if not (about := self.folder / "drawn.json").exists():
                with file_aside(about) as aside:
                    aside.write_text(json.dumps(self.about, indent=1, default=str), encoding="utf-8")
            _link(file, stored)
            stored.chmod(about.stat().st_mode)  # safetensors lets nobody else read it
            self._use(stored)
        except OSError as error:
            log.warning("the samples cache %s cannot be written (%s): going on without", self.root, error)
            self._writes = False

    def sweep(self) -> None:
        """Remove what is oldest while the store is too large."""
        sweep(self.root, self._used, MOST_BYTES)

    def _file(self, rows: range) -> Path:
        return self.folder / f"{rows.start:07d}-{rows.stop:07d}.safetensors"

    def _use(self, path: Path) -> None:
        self._used.add(path)
        touch(path)


def _link(source: Path, target: Path) -> None:
    """One file under both names, or a copy."""
    with file_aside(target) as aside:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)
