"""Networks that look at samples, and what they said, kept on disk by the hash of each file.

A killed run goes on with what is kept, and several processes share the work through it: each looks at every n-th
sample, and the first then reads what all of them wrote. It waits only for processes that are alive, and does what is
left itself.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.evaluation.distances import Moments
from selfnpo_core.evaluation.samples import Sample
from selfnpo_core.evaluation.weights import Wanted, locate, weights_sha256
from selfnpo_core.models.lengths import cut_of
from selfnpo_core.ranks import Ranks
from selfnpo_core.sampling.medium import Frames, Medium
from selfnpo_core.system.files import load_tensors, write_tensors
from selfnpo_core.system.locks import FolderLock

Look = Callable[[Sequence[Frames], Sequence[str]], Tensor]
"""Samples and their prompts ("" in a reference folder) → (n, columns + features) float32."""
_WAIT = 0.5
"""Seconds between two looks for what other processes wrote."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Something that looks at samples. What it gives of one is its `columns`, then its features."""

    name: str
    columns: tuple[str, ...] = ()
    asks: bool = False
    """Whether it reads the prompt."""
    model: str
    preprocessing: str
    library: str
    wanted: tuple[Wanted, ...] = ()
    load: Callable[[Sequence[Path], torch.device], Look]
    """From a folder for each of `wanted`."""
    reads: Callable[[Sequence[Path]], tuple[Any, int]] | None = None
    """Of one that reads prompts by tokens: from these folders, its tokenizer, and how many tokens it reads."""
    reference: Callable[[], Moments] | None = None
    """Of its features of real data, where they ship with it."""
    check: Callable[[], None] = lambda: None
    """Raises `InputError` if a package is missing."""
    refuses: Callable[[Sample], str | None] = lambda sample: None
    """Why it cannot look at a sample."""
    batch: int = 16
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Hashes of weights that are not among `wanted`."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A network whose files are there; they are read when it first looks."""

    network: Network
    places: list[Path]
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, network: Network, weights: Path | None, metric: str) -> Ready:
        places = locate(network.wanted, weights, metric)
        return cls(network=network, places=places, sha256={**network.sha256, **weights_sha256(network.wanted, places)})

    def cut(self, prompts: Sequence[str]) -> dict[str, int]:
        """Of how many prompts it does not read all, and how many tokens it does; empty where it reads them whole."""
        if self.network.reads is None:
            return {}
        tokenizer, limit = self.network.reads(self.places)
        cut = cut_of(tokenizer, limit, prompts)
        return {"prompts_cut": cut, "tokens": limit} if cut else {}

    @property
    def about(self) -> dict[str, object]:
        """What results say of it."""
        n = self.network
        return {
            "network": n.name,
            "model": n.model,
            "weights_sha256": dict(self.sha256),
            "preprocessing": n.preprocessing,
            "library": n.library,
        }

    def folder(self, reader: str) -> str:
        """Of its rows: another model, other weights, other readers or preparation of the pixels have another."""
        told = json.dumps({**self.about, "reader": reader}, sort_keys=True)
        return f"{self.network.name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


class Cache:
    """What networks said. root/NETWORK-HASH/….safetensors, each holding some samples' rows by their keys."""

    def __init__(self, root: Path, ranks: Ranks):
        self.root, self.ranks = root, ranks

    @contextmanager
    def held(self) -> Iterator[None]:
        """For as long as this process may still add something."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot keep results in {self.root} ({error.strerror}): give another --cache") from None
        lock = self._lock(self.ranks.index)
        for attempt in range(20):  # another process may be asking whether this one is there
            try:
                lock.acquire()
                break
            except InputError:
                if attempt == 19:
                    raise InputError(
                        f"{self.root} is in use by another evaluation: wait for it, or give another --cache"
                    ) from None
                time.sleep(0.1)
        try:
            yield
        finally:
            lock.release()

    def others_at_work(self) -> bool:
        """Whether another process of this evaluation is alive and may still add something."""
        for index in range(self.ranks.count):
            if index == self.ranks.index:
                continue
            lock = self._lock(index)
            try:
                lock.acquire()
            except InputError:
                return True
            lock.release()
        return False

    def _lock(self, index: int) -> FolderLock:
        return FolderLock(self.root / f".lock-{index}-of-{self.ranks.count}")

    def read(self, folder: str, seen: dict[str, Tensor], files: set[str]) -> None:
        """Put what was added since into `seen`; `files` are those read before."""
        for file in sorted((self.root / folder).glob("*.safetensors")):
            if file.name not in files:
                try:
                    seen.update(load_tensors(file))
                except InputError:  # damaged: looked at again
                    file.unlink(missing_ok=True)
                files.add(file.name)

    def add(self, folder: str, rows: Mapping[str, Tensor]) -> None:
        name = hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()[:24]
        write_tensors(self.root / folder / f"{name}.safetensors", rows)


def look(
    ready: Ready,
    samples: Sequence[Sample],
    medium: Medium,
    *,
    cache: Cache,
    device: torch.device,
    batch: int | None = None,
) -> Tensor | None:
    """Rows (n, columns + features) of samples, or None of any process but the first."""
    network = ready.network
    seen: dict[str, Tensor] = {}
    files: set[str] = set()
    keys = [_key(network, sample) for sample in samples]
    unique = dict(zip(keys, samples, strict=True))
    ranks, eyes = cache.ranks, _Eyes(ready, medium, device)
    folder = ready.folder(medium.reader())
    cache.read(folder, seen, files)

    def do(todo: list[str]) -> None:
        bar = tqdm(total=len(todo), desc=network.name, unit=medium.unit, disable=not todo, mininterval=1)
        size = batch or network.batch
        with bar:
            for start in range(0, len(todo), size):
                some = todo[start : start + size]
                rows = dict(zip(some, eyes.look([unique[key] for key in some]), strict=True))
                cache.add(folder, rows)
                seen.update(rows)
                bar.update(len(some))

    do([key for key in list(unique)[ranks.index :: ranks.count] if key not in seen])
    if ranks.index > 0:
        return None
    while any(key not in seen for key in unique):
        alive = cache.others_at_work()  # asked before reading: what a process wrote before it ended is then read
        cache.read(folder, seen, files)
        if not alive:
            do([key for key in unique if key not in seen])
        elif any(key not in seen for key in unique):
            time.sleep(_WAIT)
    return torch.stack([seen[key] for key in keys]).float()


class _Eyes:
    """A network that is loaded when there is something to look at."""

    def __init__(self, ready: Ready, medium: Medium, device: torch.device):
        self._ready, self._medium, self._device = ready, medium, device
        self._look: Look | None = None

    @torch.no_grad()
    def look(self, samples: Sequence[Sample]) -> Tensor:
        if self._look is None:
            self._look = self._ready.network.load(self._ready.places, self._device)
        with ThreadPoolExecutor(4) as pool:
            frames = list(pool.map(lambda sample: self._medium.read(sample.path), samples))
        rows = self._look(frames, [sample.prompt or "" for sample in samples]).float().cpu()
        if not rows.isfinite().all():
            row = int((~rows.isfinite()).any(dim=1).nonzero()[0])
            raise RunError(f"{self._ready.network.name} says nothing finite of {samples[row].path}")
        return rows


def _key(network: Network, sample: Sample) -> str:
    asked = f"\n{sample.prompt}" if network.asks else ""
    return hashlib.sha256(f"{sample.sha256}{asked}".encode()).hexdigest()[:32]
