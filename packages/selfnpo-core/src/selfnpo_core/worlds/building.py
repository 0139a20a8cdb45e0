"""What the scripts that make the demo models share: schedule, progress, and stages kept on disk."""

import copy
import hashlib
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from tqdm import tqdm

from selfnpo_core.ema import ema_update
from selfnpo_core.system.files import file_aside, write_tensors

Network = TypeVar("Network", bound=nn.Module)


def cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def progress(steps: int, name: str, first: int = 0) -> "tqdm[int]":
    return tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=5.0, dynamic_ncols=True)


def save(module: nn.Module, path: Path) -> None:
    with file_aside(path) as aside:
        save_model(module, str(aside))  # also where tensors are shared, as T5's embeddings are


def fingerprint(module: nn.Module) -> str:
    """Eight hex digits of the weights: part of the name of what was made with them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def load(module: Network, path: Path) -> Network:
    load_model(module, path)
    return module.eval()


def train_averaged(
    net: Network,
    loss_of: Callable[[torch.Generator], Tensor],
    path: Path,
    *,
    steps: int,
    lr: float,
    generator: torch.Generator,
    keep_every: int = 250,
    until: int | None = None,
    snapshots: Collection[int] = (),
) -> Network:
    """Train by AdamW; the exponential moving average of the weights goes to `path` and is returned.

    Not diffusers' EMAModel, whose first update is a copy: here it keeps a tenth of the initial weights.
    loss_of: one batch's loss, all of whose randomness comes from the generator that it is given. An interrupted
    training goes on from the state that it keeps beside `path`.
    until: updates after which to stop, although the learning rate falls as if there were `steps` of them.
    snapshots: numbers of updates after which the average is kept too, at `snapshot_path(path, number)`.
    """
    average = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.01, betas=(0.9, 0.99))
    state = _State(path.with_name(f"{path.stem}-state.safetensors"), net, average, optimizer, generator)
    first, running = state.load(), 1.0
    bar = progress(steps if until is None else until, path.stem, first)
    for step in bar:
        loss = loss_of(generator)
        optimizer.param_groups[0]["lr"] = lr * cosine(step, steps, warmup=200)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step))
        ema_update(average.parameters(), net.parameters(), decay)
        running += 0.01 * (loss.item() - running)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{running:.4f}", refresh=False)
        if (step + 1) % keep_every == 0:
            state.save(step + 1)
        if step + 1 in snapshots:
            save(average, snapshot_path(path, step + 1))
    save(average, path)
    state.clear()
    return average


def snapshot_path(path: Path, updates: int) -> Path:
    """Where `train_averaged` keeps the average as it was after so many updates."""
    return path.with_name(f"{path.stem}-{updates}.safetensors")


class _State:
    """What an interrupted training needs to go on: weights, their average, AdamW's moments, random numbers."""

    def __init__(
        self,
        path: Path,
        net: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        self._path, self._net, self._average = path, net, average
        self._optimizer, self._generator = optimizer, generator

    def save(self, step: int) -> None:
        moments = self._optimizer.state_dict()["state"]
        state = {f"net.{k}": v for k, v in self._net.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self._average.state_dict().items()}
        state |= {f"moment.{i}.{key}": value for i, values in moments.items() for key, value in values.items()}
        state |= {"step": torch.tensor(step), "generator": self._generator.get_state()}
        write_tensors(self._path, state)

    def clear(self) -> None:
        """Another training of this name begins anew."""
        self._path.unlink(missing_ok=True)

    def load(self) -> int:
        """Put everything back; returns the number of updates made, 0 where there is no state."""
        if not self._path.exists():
            return 0
        state = load_file(self._path)
        for prefix, module in (("net.", self._net), ("average.", self._average)):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("moment."):
                _, index, key = name.split(".", 2)
                moments.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self._generator.set_state(state["generator"])
        return int(state["step"])
