"""Two folders of samples (`selfnpo_core.sampling.sample_folder`) as pairs of the same prompt and seed.

What is compared, such as weights, guidance scale or model, may differ. How it was drawn otherwise may not.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.samples import Key
from selfnpo_core.sampling.medium import ShownMedium
from selfnpo_core.sampling.sample_folder import ALIKE, METADATA, Record, read_records
from selfnpo_core.system.files import file_sha256

Side = Literal["a", "b"]
"""Which of the two folders."""
SIDES: tuple[Side, Side] = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two samples of one prompt and seed."""

    prompt: str
    seed: int
    files: Mapping[Side, Path]


def read_pairs(folders: Mapping[Side, Path], medium: ShownMedium, *, allow_different: bool = False) -> list[Pair]:
    """All pairs, in the order of folder a. Raises `InputError` for what cannot be paired; opens no sample."""
    if folders["a"].resolve() == folders["b"].resolve():
        raise InputError(f"{folders['a']} and {folders['b']} are one folder: give two")
    records = {arm: _records(folders[arm], medium) for arm in SIDES}
    for arm, other in (SIDES, SIDES[::-1]):
        for prompt, seed in records[arm]:
            if (prompt, seed) not in records[other]:
                raise InputError(
                    f"{folders[arm]} has {len(records[arm])} samples and {folders[other]} {len(records[other])}, and "
                    f"prompt {prompt!r} with seed {seed} is in the first only: draw both with the same prompts and "
                    "seeds"
                )
    pairs = []
    for (prompt, seed), one in records["a"].items():
        two = records["b"][prompt, seed]
        if not allow_different:
            _compare(folders, one, two)
        files: dict[Side, Path] = {"a": _file(folders["a"], one, medium), "b": _file(folders["b"], two, medium)}
        pairs.append(Pair(prompt=prompt, seed=seed, files=files))
    return pairs


def some(pairs: Sequence[Pair], limit: int | None, generator: torch.Generator) -> list[Pair]:
    """`limit` pairs at random, in their order; all where there is no limit."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    return [pairs[i] for i in sorted(torch.randperm(len(pairs), generator=generator)[:limit].tolist())]


def check_samples(pairs: Sequence[Pair], medium: ShownMedium, *, allow_different: bool = False) -> None:
    """Read every file. Raises `InputError` for a damaged one, or for a pair of two sizes."""
    for pair in pairs:
        sizes = {arm: medium.size(pair.files[arm]) for arm in SIDES}
        if sizes["a"] != sizes["b"] and not allow_different:
            told = " and ".join(f"{pair.files[arm]} is {sizes[arm][0]} × {sizes[arm][1]}" for arm in SIDES)
            raise InputError(f"{told}: draw both at one size, or say --allow-different")


def digest(pairs: Sequence[Pair]) -> str:
    """Hash of what the folders hold: prompts, seeds and the bytes of both arms' files."""
    total = hashlib.sha256()
    for pair in pairs:
        line = [pair.prompt, pair.seed, *(file_sha256(pair.files[arm]) for arm in SIDES)]
        total.update(json.dumps(line).encode() + b"\n")
    return total.hexdigest()


def _records(folder: Path, medium: ShownMedium) -> dict[Key, Record]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give a folder that `sample` wrote")
    if not (folder / METADATA).is_file():
        raise InputError(f"{folder} has no {METADATA}: give a folder that `sample` wrote")
    found: dict[Key, Record] = {}
    for record in read_records(folder / METADATA):
        prompt, seed = record.get("prompt"), record.get("seed")
        if not isinstance(prompt, str) or not isinstance(seed, int):
            raise InputError(f"{folder / METADATA}: the line of {record['file']} has no prompt and seed")
        if (prompt, seed) in found:
            raise InputError(f"{folder} has prompt {prompt!r} with seed {seed} twice: draw it with other seeds")
        found[prompt, seed] = record
    if not found:
        raise InputError(f"{folder} has no samples: draw {medium.unit}s into it first")
    return found


def _compare(folders: Mapping[Side, Path], one: Record, two: Record) -> None:
    for key in ALIKE:
        if one.get(key) != two.get(key):
            told = " and ".join(
                f"{folders[arm] / str(record['file'])} was drawn with {key} {record.get(key)}"
                for arm, record in zip(SIDES, (one, two), strict=True)
            )
            raise InputError(f"{told}: a difference in {key} would be judged too; draw anew, or say --allow-different")


def _file(folder: Path, record: Record, medium: ShownMedium) -> Path:
    """A record's file. A plain name, in the folder itself and not by a link out of it."""
    name = str(record["file"])
    if Path(name).name != name:
        raise InputError(f"{folder / METADATA} names {name!r}, which is no file of that folder")
    path = folder / name
    if path.suffix.lower() != f".{medium.suffix}":
        raise InputError(f"{path} cannot be shown: a study of {medium.unit}s takes .{medium.suffix} files")
    if not path.is_file():
        raise InputError(f"{path} is missing: draw it again with the command that made {folder}")
    if folder.resolve() not in path.resolve().parents:
        raise InputError(f"{path} is a link that leads out of {folder}: copy the file there")
    return path
