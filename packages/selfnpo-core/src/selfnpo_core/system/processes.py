"""What processes that train together do for one another: one acts for all, or each takes a share.

Numbers are exchanged in the group that trains, whose time-out finds a process that hangs. Where some have work and the
others have none (one writes a checkpoint, three of eight draw a sample) these wait at a meeting, for as long as all
give signs of life (`selfnpo_core.system.meeting`); what they then tell one another goes through a group of its own, on
the CPU.
"""

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.system.meeting import Meetings
from selfnpo_core.system.private import default_store

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting:
    """trains: the group that trains, beside which it is. group: on the CPU."""

    trains: Any
    group: Any
    meetings: Meetings


_waits: list[_Waiting] = []
"""Of the last group that there was, if any process has waited yet."""


def _waiting() -> _Waiting:
    """Made by all processes together when they first wait."""
    trains = dist.group.WORLD
    if not _waits or _waits[0].trains is not trains:
        for former in _waits:
            former.meetings.close()
        if not _waits:
            atexit.register(_end_waiting)
        store = default_store()
        group = dist.new_group(backend="gloo", timeout=store.timeout)
        _waits[:] = [_Waiting(trains, group, Meetings(store, *_place(), store.timeout))]
    return _waits[0]


def _end_waiting() -> None:
    """Threads end before the interpreter does, which aborts where they still run; then nothing holds on to it."""
    for waiting in _waits:
        waiting.meetings.close()
        if dist.is_initialized() and waiting.trains is dist.group.WORLD:
            dist.destroy_process_group(waiting.group)
    _waits.clear()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if _together() else (0, 1)


def is_main() -> bool:
    """Whether this is the first of the processes."""
    return not _together() or dist.get_rank() == 0


def on_main(work: Callable[[], Result]) -> Result:
    """The first process works, the others wait and get the same answer, or the same error."""
    if not _together():
        return work()
    waiting = _waiting()  # before the work: that it can be made is not waited for
    answer: list[Any] = [None]
    failure: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            answer = [(True, work())]
        except Exception as error:
            failure, answer = error, [(False, (type(error).__name__, str(error)))]
    waiting.meetings.meet()
    dist.broadcast_object_list(answer, src=0, group=waiting.group)
    if failure is not None:
        raise failure
    done, value = answer[0]
    if done:
        result: Result = value
        return result
    name, text = value
    raise (InputError if name == "InputError" else RunError)(text)


def gathered(work: Callable[[], Result]) -> list[Result]:
    """What every process's work gives, in their order, on all of them; if one fails, none waits for it."""
    if not _together():
        return [work()]
    waiting = _waiting()
    mine: Any = None
    failure: Exception | None = None
    try:
        mine = work()
    except Exception as error:  # the others must not wait for a result that never comes
        failure = error
    everyones: list[Any] = [None] * dist.get_world_size()
    problem = None if failure is None else f"{type(failure).__name__}: {failure}"
    waiting.meetings.meet()
    dist.all_gather_object(everyones, (mine, problem), group=waiting.group)
    if failure is not None:
        raise failure
    if strays := [problem for _, problem in everyones if problem is not None]:
        raise RunError(f"another process of this run failed: {strays[0]}")
    return [result for result, _ in everyones]


def shared_out(items: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[Result]]) -> list[Result] | None:
    """Each of n processes works on every n-th item; the first one gets all results, in the items' order."""
    rank, count = _place()
    own = items[rank::count]
    everyones = gathered(lambda: list(work(own)) if own else [])
    if rank:
        return None
    results: list[Any] = [None] * len(items)
    for other, part in enumerate(everyones):
        results[other::count] = part
    return results


def is_first_of_node() -> bool:
    """Whether no other process of its machine comes before this one, as its launcher says."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def own_share(lacking: Sequence[Sequence[str]], able: Sequence[bool] | None = None) -> list[str]:
    """Of what the processes lack, as `gathered`, this one's part: each item goes to one of those that lack it.

    able: of each process, whether it is to take a part where one that is lacks the item too; `None`: all are.
    """
    lack: dict[str, list[int]] = {}
    for rank, items in enumerate(lacking):
        for item in items:
            lack.setdefault(item, []).append(rank)
    own, count = _place()
    takes = [True] * count if able is None else able
    takers = [[rank for rank in ranks if takes[rank]] or ranks for ranks in lack.values()]
    return [item for i, (item, ranks) in enumerate(zip(lack, takers, strict=True)) if ranks[i % len(ranks)] == own]


def largest(value: int, device: torch.device) -> int:
    """The largest of all processes' values."""
    if not _together():
        return value
    found = torch.tensor([value], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def total(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if _together():
        value = value.clone()
        dist.all_reduce(value)
    return value


def joined(own: Tensor, owners: Sequence[Tensor], device: torch.device, keep: bool) -> Tensor | None:
    """Rows of all processes, in the host's memory, where they are to be kept. owners: of each, which rows it has."""
    if not _together():
        return own.cpu() if keep else None
    rows = sum(len(part) for part in owners)
    everyones = torch.empty((rows, *own.shape[1:]), dtype=own.dtype) if keep else None
    most = max(len(part) for part in owners)
    for k in range(most):  # row by row: the accelerator needs no room for them
        row = own[k] if k < len(own) else own[0]
        there = [torch.empty_like(row, device=device) for _ in owners]
        dist.all_gather(there, row.to(device).contiguous())
        if everyones is not None:
            for part, received in zip(owners, there, strict=True):
                if k < len(part):
                    everyones[part[k]] = received.cpu()
    return everyones
