"""Sample folders as they are evaluated: every file opened, pairs of prompt and seed, and what is wrong named.

A folder that is evaluated has a metadata.jsonl (`selfnpo_core.sampling.sample_folder`). A reference is any folder of
pictures or clips: nothing is asked of it but that its files can be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.listing import listing, told
from selfnpo_core.sampling.medium import Medium
from selfnpo_core.sampling.sample_folder import ALIKE, METADATA, read_records
from selfnpo_core.system.files import file_sha256
from selfnpo_core.system.pictures import frame_files

Key = tuple[str, int]
"""Prompt and seed."""
BLACK = 2
"""Of 255: what compression makes of black is not above."""
_NAMED = 3
"""Problems that a message names; the others are counted."""
_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file that can be read. prompt, seed: None in a reference folder."""

    path: Path
    sha256: str
    shape: tuple[int, ...]
    """Frames, height, width."""
    black: int = 0
    """Frames that are all black, as NaN becomes."""
    prompt: str | None = None
    seed: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a sample is left out, or nothing is done at all."""

    folder: str
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.file}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a folder holds, in order of the files' names."""

    path: Path
    good: list[Sample]
    problems: list[Problem]
    bad: frozenset[Key]
    """Prompts and seeds of samples that cannot be read."""
    nameless: int = 0
    """How many have no prompt or seed."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """What else lies there and is no sample, by kind of file."""

    @property
    def black(self) -> int:
        """How many of the good ones hold frames that are all black."""
        return sum(sample.black > 0 for sample in self.good)

    def remarks(self, unit: str) -> list[str]:
        """What a reader of their figures should know, a line each."""
        said = []
        if self.passed_over:
            said.append(f"{self.path}: passed over {told(self.passed_over)}, which are no {unit}s that can be read")
        if self.black:
            said.append(
                f"{self.path}: {self.black} of {len(self.good)} {unit}s hold frames that are all black, as NaN "
                "becomes: if they should not, draw them again in another dtype"
            )
        return said

    @property
    def model(self) -> Mapping[str, Any]:
        """What one record says of how the samples were made, without what differs from one to the next."""
        record = self.good[0].record if self.good else {}
        return {key: value for key, value in record.items() if key not in ("file", "prompt", "seed", "original_prompt")}


def read_samples(path: str | Path, medium: Medium) -> Samples:
    """A folder with its metadata.jsonl, all of whose samples are opened."""
    path = _folder(path)
    if not (path / METADATA).is_file():
        raise InputError(f"{path} has no {METADATA}, which says the prompts: give a folder that `sample` made")
    records = {record["file"]: record for record in read_records(path / METADATA)}
    found = listing(path, medium, known=records)
    files = {file.name: file for file in found.files}
    problems: list[Problem] = []
    asked: dict[str, Mapping[str, Any]] = {}
    for name in sorted({*records, *files}):
        record = records.get(name)
        if record is None:
            problems.append(Problem(folder=str(path), file=name, reason=f"no line in {METADATA}, so no prompt"))
        elif not _is_within(name):
            problems.append(Problem(folder=str(path), file=name, reason=f"{METADATA} names no file of this folder"))
        elif not isinstance(record.get("prompt"), str) or not isinstance(record.get("seed"), int):
            problems.append(Problem(folder=str(path), file=name, reason=f"no prompt or seed in {METADATA}"))
        else:
            asked[name] = record
    nameless = len(problems)
    _refuse_twice(path, asked)
    good, bad = [], set()
    for name, sample in _opened(path, [path / name for name in asked], medium):
        record = asked[name]
        if isinstance(sample, str):
            problems.append(Problem(folder=str(path), file=name, reason=sample))
            bad.add((record["prompt"], record["seed"]))
        else:
            good.append(replace(sample, prompt=record["prompt"], seed=record["seed"], record=record))
    return Samples(
        path=path, good=good, problems=problems, bad=frozenset(bad), nameless=nameless, passed_over=found.passed_over
    )


def read_reference(path: str | Path, medium: Medium) -> Samples:
    """Every picture or clip in a folder and the folders in it."""
    path = _folder(path)
    found = listing(path, medium)
    if not found.files:
        holds = f", but {told(found.passed_over)}" if found.passed_over else ""
        kinds = ", ".join(sorted(medium.suffixes - {""})) + ("; a clip's frames in a folder" * ("" in medium.suffixes))
        raise InputError(f"reference {path} holds no {medium.unit}{holds}: give a folder with {kinds}")
    good, problems = [], []
    for name, sample in _opened(path, found.files, medium):
        if isinstance(sample, str):
            problems.append(Problem(folder=str(path), file=name, reason=sample))
        else:
            good.append(sample)
    return Samples(path=path, good=good, problems=problems, bad=frozenset(), passed_over=found.passed_over)


def pair(one: Samples, other: Samples, *, allow_different: bool) -> tuple[Samples, Samples, list[str]]:
    """The samples of both that have the same prompt and seed and are good on both sides, in the same order.

    Also returns in what the folders differ, which raises `InputError` unless allowed. A sample that has no partner only
    because the other folder holds fewer is one of its folder's problems.
    """
    arms = [{(s.prompt, s.seed): s for s in each.good} for each in (one, other)]
    keys = [{*arm, *each.bad} for arm, each in zip(arms, (one, other), strict=True)]
    shared = [key for key in arms[0] if key in arms[1]]
    alone = [keys[0] - keys[1], keys[1] - keys[0]]
    different: list[str] = []
    if len(alone[0]) > other.nameless and len(alone[1]) > one.nameless:
        texts = [{prompt for prompt, _ in some} for some in keys]
        different.append("prompts" if texts[0] != texts[1] else "seeds")
    different += _differences([arms[0][key] for key in shared], [arms[1][key] for key in shared])
    if different and not allow_different:
        raise InputError(
            f"{one.path} and {other.path} differ in {', '.join(different)}: draw both alike, or give --allow-different"
        )
    if not shared:
        raise InputError(f"{one.path} and {other.path} share no prompt and seed: evaluate each by itself")
    found = []
    for each, arm, lonely, elsewhere in zip((one, other), arms, alone, (other, one), strict=True):
        reason = f"no sample of its prompt and seed in {elsewhere.path}"
        more = [
            Problem(folder=str(each.path), file=sample.path.name, reason=reason)
            for key, sample in arm.items()
            if key in lonely
        ]
        problems = each.problems + ([] if allow_different else more)
        found.append(replace(each, good=[arm[key] for key in shared], problems=problems, nameless=0))
    return found[0], found[1], different


def refuse_bad(folders: Sequence[Samples], *, skip: bool) -> list[Problem]:
    """All problems; raises `InputError` that names some unless they are skipped, or if nothing is left."""
    problems = [problem for folder in folders for problem in folder.problems]
    if problems and not skip:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        named = "; ".join(str(problem) for problem in problems[:_NAMED])
        raise InputError(f"{named}{more}: mend the folder, or give --skip-bad to leave such samples out")
    for folder in folders:
        if not folder.good:
            raise InputError(f"{folder.path} has no sample that can be read: draw them again")
    return problems


def _folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is no folder: give a folder of samples")
    return path


def _is_within(name: str) -> bool:
    """Whether a record's file lies in its folder, and is called in one way only."""
    path = Path(name)
    return path.as_posix() == name and not path.is_absolute() and path.parts != () and ".." not in path.parts


def _refuse_twice(path: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    seen: dict[Key, str] = {}
    for name, record in records.items():
        key = record["prompt"], record["seed"]
        if key in seen:
            raise InputError(
                f"{path} holds two samples of one prompt and seed ({seen[key]}, {name}): evaluate one arm at a time"
            )
        seen[key] = name


def _opened(root: Path, files: Sequence[Path], medium: Medium) -> list[tuple[str, Sample | str]]:
    """Each file's name below `root`, with the sample that it is, or why it cannot be read."""

    def opened(file: Path) -> Sample | str:
        if not file.exists():
            return "the file is missing"
        try:
            frames = medium.read(file)
        except InputError as error:
            return " ".join(str(error).removeprefix(str(file)).split())
        black = sum(int(frame.max(initial=0) <= BLACK) for frame in frames)
        return Sample(path=file, sha256=content_sha256(file), shape=frames.shape[:3], black=black)

    bar = tqdm(total=len(files), desc=f"check {root.name}", unit=medium.unit, leave=False, mininterval=1)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        found = []
        for file, result in zip(files, pool.map(opened, files), strict=True):
            found.append((file.relative_to(root).as_posix(), result))
            bar.update()
    return found


def content_sha256(path: Path) -> str:
    """Hash of a file's bytes, or of all frames' in a folder."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in frame_files(path):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def digest(samples: Sequence[Sample]) -> str:
    """Hash of what some samples are: prompts, seeds and bytes, in their order."""
    total = hashlib.sha256()
    for sample in samples:
        total.update(json.dumps([sample.prompt, sample.seed, sample.sha256]).encode() + b"\n")
    return total.hexdigest()


def _differences(one: Sequence[Sample], other: Sequence[Sample]) -> list[str]:
    """What differs in records and files, such as "steps (25, 50)"."""
    found = []
    for key in ALIKE:
        a, b = ({str(sample.record.get(key)) for sample in some} for some in (one, other))
        if a != b:
            found.append(f"{key} ({', '.join(sorted(a))} and {', '.join(sorted(b))})")
    a, b = ({"×".join(map(str, sample.shape)) for sample in some} for some in (one, other))
    if a != b:
        found.append(f"frames×height×width ({', '.join(sorted(a))} and {', '.join(sorted(b))})")
    return found
