"""A folder of samples: 00000-SEED.png|mp4, … and metadata.jsonl, a line a sample that says how it was made.

What is to be drawn is known beforehand as records. A folder that holds exactly such records already is gone on with;
one that holds anything else is left alone. A sample is there, whole, before its line in metadata.jsonl is.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from selfnpo_core.errors import InputError
from selfnpo_core.system.files import named_aside, write_text
from selfnpo_core.system.locks import FolderLock
from selfnpo_core.system.text import decoded, parse_json, writable

METADATA = "metadata.jsonl"
REPORT, FIGURES = "report.html", "figures.json"
"""What `report`, and `evaluate` if told so, put into a folder of samples that may still grow."""
ALIKE = ("steps", "scheduler", "height", "width", "frames", "fps", "image_sha256")
"""Of a record: what two arms must have in common to be compared; models, scales and negative weights may differ."""
OUTCOME = ("tiled",)
"""Of a line: how drawing went, which nobody knew before."""
Record = Mapping[str, Any]


def sample_name(index: int, seed: int, suffix: str) -> str:
    """Such as 00007-42.png: the sample's number and its seed."""
    return f"{index:05d}-{seed}.{suffix}"


class SampleFolder:
    """The samples that `records` describe, each with its "file". Use as a context manager: it holds a lock."""

    def __init__(
        self,
        path: str | Path,
        records: Sequence[Record],
        *,
        beside: Sequence[str] = (),
        shard: tuple[int, int] = (0, 1),
        together: int = 1,
    ):
        """beside: names of other files and folders that may lie in the folder.

        shard: (r, n) where n processes fill the folder, this one being number r; each block of `together` records goes
        to one of them.
        """
        self.path = Path(path)
        self.records = [json.loads(json.dumps(record)) for record in records]
        self._beside = {*beside, METADATA, REPORT, FIGURES}
        self._rank, self._world, self._together = *shard, together
        own = "" if self._world == 1 else f"-{self._rank}-of-{self._world}"
        self._lock, self._aside = FolderLock(self.path / f".lock{own}"), self.path / f".partial{own}"
        self._done: set[str] = set()

    def __enter__(self) -> "SampleFolder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"output {self.path} is a file: choose a folder") from None
        self._lock.acquire()
        try:
            self._refuse_others()
            shutil.rmtree(self._aside, ignore_errors=True)  # what a killed process had begun
            self._done = self._check()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)
        self._lock.release()

    @property
    def missing(self) -> list[int]:
        """Indices of the records that are still to be drawn, by this process."""
        own = [i for i in range(len(self.records)) if i // self._together % self._world == self._rank]
        return [i for i in own if self.records[i]["file"] not in self._done]

    def path_of(self, index: int) -> Path:
        return self.path / self.records[index]["file"]

    def add(self, index: int, write: Callable[[Path], object]) -> None:
        """Put one sample there: `write` makes the file it is given, which then gets its name and its line.

        A mapping that `write` returns is how it went (`OUTCOME`), and stands in the line too.
        """
        record = self.records[index]
        outcome = self.put(record["file"], write)
        line_of = {**record, **outcome} if isinstance(outcome, Mapping) else record
        with open(self.path / METADATA, "ab+") as file:
            line = writable(json.dumps(line_of, ensure_ascii=False)) + "\n"
            file.write((b"" if _ends_whole(file) else b"\n") + line.encode())
        self._done.add(record["file"])

    def put(self, name: str, write: Callable[[Path], object]) -> object:
        """A file or folder without a line: it has its name when it is whole, and a killed process leaves no part.

        Returns what `write` does.
        """
        with named_aside(self.path / name, within=self._aside) as aside:
            return write(aside)

    def _refuse_others(self) -> None:
        """Processes that divide the work otherwise would draw the same samples. Raises `InputError` if there are any.

        What such a process had begun when it was killed is removed.
        """
        for path in self.path.glob(".lock*"):
            together = self._world > 1 and path.name.endswith(f"-of-{self._world}")
            if path != self._lock.path and not together:
                other = FolderLock(path)
                other.acquire()
                shutil.rmtree(path.with_name(path.name.replace(".lock", ".partial")), ignore_errors=True)
                other.release()

    def _check(self) -> set[str]:
        """Names of the samples that are there. Raises `InputError` if anything else is."""
        there = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
        metadata = self.path / METADATA
        if not metadata.exists():
            if foreign := [name for name in there if name not in self._beside]:
                raise InputError(f"output folder {self.path} is not empty ({foreign[0]}): choose a new folder")
            metadata.touch()
            return set()
        wanted = {record["file"]: record for record in self.records}
        kept = [record for record in read_records(metadata) if (self.path / record["file"]).exists()]
        for record in kept:
            self._compare(record, wanted.get(record["file"]))
        if foreign := [name for name in there if name not in self._beside and name not in wanted]:
            raise InputError(f"output folder {self.path} holds something else ({foreign[0]}): choose a new folder")
        lines = "".join(writable(json.dumps(record, ensure_ascii=False)) + "\n" for record in kept)
        if self._world == 1 and metadata.read_bytes() != lines.encode():  # others may be writing
            write_text(metadata, lines)
        return {record["file"] for record in kept}

    def _compare(self, old: Record, new: Record | None) -> None:
        if new is None:
            raise InputError(
                f"output folder {self.path} holds other samples ({old['file']}): choose a new folder, or repeat the "
                "command that made them to go on with it"
            )
        for key in ({**old, **new}).keys() - set(OUTCOME):
            if old.get(key) != new.get(key):
                raise InputError(
                    f"output folder {self.path} holds samples made otherwise ({old['file']}: {key} was "
                    f"{old.get(key)!r}, now {new.get(key)!r}): choose a new folder"
                )


def _ends_whole(file: IO[bytes]) -> bool:
    """Whether a file of lines ends with a whole one: a kill or a full disk cuts the last. Leaves it at its end."""
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_records(path: Path) -> list[Record]:
    """The whole lines of a metadata.jsonl, one a file: a line may have been cut, and a file been drawn again."""
    records: dict[str, Record] = {}
    data = path.read_bytes()
    try:
        text = decoded(data)
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    for line in text.split("\n"):
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("file"), str):
            records[record["file"]] = record
    return list(records.values())
