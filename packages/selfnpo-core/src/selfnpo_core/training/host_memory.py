"""What a node's own memory holds while all weights are trained, of each of its processes or once for all of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfnpo_core.errors import InputError
from selfnpo_core.system.memory import available, size_text
from selfnpo_core.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class HostPart:
    """count × bytes of it lie in a node's memory."""

    name: str
    bytes: int
    count: int = 1

    @property
    def together(self) -> int:
        return self.count * self.bytes

    def __str__(self) -> str:
        return f"{self.name} {f'{self.count} × ' if self.count > 1 else ''}{size_text(self.bytes)}"


def processes_on_node(processes: int) -> int:
    """Of so many in all, as the launcher says; else all of them."""
    return min(processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))


def host_parts(each: Sequence[tuple[str, int]], processes: int, shared: Sequence[str] = ()) -> tuple[HostPart, ...]:
    """each: name and bytes of what every process has there, or of the `shared` ones a node."""
    here = processes_on_node(processes)
    return tuple(HostPart(name=name, bytes=size, count=1 if name in shared else here) for name, size in each if size)


def check_host(parts: Sequence[HostPart], recipe: Recipe) -> None:
    """Raise `InputError` for a node whose memory does not hold this. Before anything is loaded."""
    needed, free = sum(part.together for part in parts), available(torch.device("cpu"))
    if needed <= free:
        return
    advice = [
        "fewer processes on each node" if any(part.count > 1 for part in parts) else "",
        "--set offload_optimizer=false" if recipe.offload_optimizer else "",
        "--set offload_parameters=false" if recipe.offload_parameters else "",
        "--set train=lora",
    ]
    raise InputError(
        f"this training takes {size_text(needed)} of a node's own memory ({', '.join(map(str, parts))}), and here "
        f"{size_text(free)} are free: use {', or '.join(filter(None, advice))}"
    )


def host_line(parts: Sequence[HostPart]) -> str:
    return f"host memory, a node  {size_text(sum(part.together for part in parts))}: {', '.join(map(str, parts))}"
