"""Tensors that are whole nowhere at once: made whole one after another, and written as they come.

A checkpoint of all weights is several times as large as the network, which may lie in pieces over the processes. All
of them walk through its tensors together; one of them copies each to the host's memory and writes it while the next is
made whole. So each holds the tensor that it writes and the one that is to follow, and the work on the disk is shared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from selfnpo_core.ranks import ALONE, Ranks
from selfnpo_core.system.files import HashedFile, file_order
from selfnpo_core.system.processes import gathered

WRITTEN_AT_ONCE = 2
"""Tensors in a process's own memory: one that is written, and one that waits for it."""


@dataclass(frozen=True, kw_only=True)
class Walk(Mapping[str, Tensor]):
    """Tensors that may lie in pieces. To be asked for one, or for all, by all processes together.

    outlines: their whole shapes and their types, on the meta device. one_by_one: those of these names, each there until
    the next is asked for, on any device.
    """

    outlines: Mapping[str, Tensor]
    one_by_one: Callable[[Sequence[str]], Iterator[Tensor]]

    def __getitem__(self, name: str) -> Tensor:
        """A copy of its own in the host's memory."""
        (copy,) = (tensor.detach().to("cpu", copy=True) for tensor in self.one_by_one([name]))
        return copy

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)


@dataclass(frozen=True)
class Written:
    """Of a file."""

    size: int
    sha256: str


def write_parts(
    folder: Path, parts: Mapping[str, Mapping[str, Tensor]], ranks: Ranks = ALONE, *, shared: bool = False
) -> dict[str, Written]:
    """PART.safetensors of each, by all processes together. Returns the files by name, on all of them.

    shared: every process writes a share of each `Walk`, PART-00001-of-00008.safetensors; else the first one all of it.
    What is no `Walk` is the first one's. If one process cannot write, all raise.
    """

    def work() -> dict[str, Written]:
        written: dict[str, Written] = {}
        with _Behind() as behind:
            for part, tensors in parts.items():
                is_walk = isinstance(tensors, Walk)
                if not is_walk and ranks.index:
                    continue
                writers = ranks.count if shared and is_walk else 1
                own = shares(_outlines(tensors), writers)[ranks.index] if ranks.index < writers else None
                number = f"-{ranks.index + 1:05d}-of-{writers:05d}" if writers > 1 else ""
                _write(folder / f"{part}{number}.safetensors", tensors, own, written, behind)
        return written

    return {name: file for own in gathered(work) for name, file in own.items()}


def write_whole(path: Path, walk: Walk, ranks: Ranks = ALONE, metadata: Mapping[str, str] | None = None) -> str:
    """One file, which the first process writes while all walk together. Returns its sha256, on all of them."""

    def work() -> dict[str, Written]:
        written: dict[str, Written] = {}
        with _Behind() as behind:
            _write(path, walk, list(walk) if ranks.index == 0 else None, written, behind, metadata)
        return written

    return gathered(work)[0][path.name].sha256


def shares(outlines: Mapping[str, Tensor], writers: int) -> list[list[str]]:
    """Names for each writer, in the order of their files. None has more than another by more than the largest."""
    names: list[list[str]] = [[] for _ in range(writers)]
    held = [0] * writers
    for name in file_order(outlines):
        least = held.index(min(held))
        names[least].append(name)
        held[least] += outlines[name].nbytes
    return names


def _write(
    path: Path,
    tensors: Mapping[str, Tensor],
    own: Sequence[str] | None,
    written: dict[str, Written],
    behind: "_Behind",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Walk through all tensors, and have those of these names written. own: `None`: no file."""
    outlines = _outlines(tensors)
    names = file_order(outlines)
    opened: list[HashedFile] = []

    def begin() -> None:
        opened.append(HashedFile(path, {name: outlines[name] for name in own or ()}, metadata))

    def end() -> None:
        digest = opened[0].close()
        written[path.name] = Written(opened[0].size, digest)

    def add(tensor: Tensor) -> None:
        opened[0].add(tensor)

    def pass_on(name: str, tensor: Tensor) -> None:
        if name in chosen:
            behind.do(add, tensor.detach().to("cpu", copy=True))

    chosen = set(own or ())
    if own is not None:
        behind.do(begin)
    each = tensors.one_by_one(names) if isinstance(tensors, Walk) else (tensors[name] for name in names)
    for name in names:
        pass_on(name, next(each))  # and nobody holds it when the next is made
    for _ in each:
        raise AssertionError("a walk has more tensors than names")
    if own is not None:
        behind.do(end)


def _outlines(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return tensors.outlines if isinstance(tensors, Walk) else tensors


class _Behind:
    """Does one thing after another in a thread, each while the next is prepared.

    After a failure nothing more is done, and leaving the block raises it: before that the other processes may wait for
    what this one has to do with them.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[Any] | None = None
        self._failure: BaseException | None = None
        self._given: tuple[Any, ...] = ()

    def __enter__(self) -> "_Behind":
        return self

    def do(self, work: Callable[..., Any], *given: Any) -> None:
        self._wait()
        if self._failure is None:
            self._given = given  # and the thread has no hold on it when it is done
            self._pending = self._thread.submit(lambda: work(*self._given))

    def _wait(self) -> None:
        if self._pending is not None:
            self._failure, self._pending = self._pending.exception(), None
            self._given = ()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._wait()
        self._thread.shutdown()
        if error is None and self._failure is not None:
            raise self._failure
