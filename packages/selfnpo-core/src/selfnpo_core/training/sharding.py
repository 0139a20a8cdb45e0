"""Tensors that ZeRO-3 holds in pieces (1910.02054): made whole for a while, averaged piece by piece.

DeepSpeed keeps a rank's piece of a parameter as `ds_tensor`, flat and padded to equal lengths; `data` is whole while
the parameter is in use, and always for those that it calls persistent. Ordinary tensors pass through unchanged. What
is whole is the same on every rank, and all ranks must ask for it together.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def _is_whole(tensor: Any) -> bool:
    return not is_sharded(tensor) or tensor.ds_status.name == "AVAILABLE"


@contextmanager
def whole(tensors: Iterable[Tensor], *, changed: bool = False) -> Iterator[None]:
    """Within the block these are whole. changed: what the first rank writes into them is kept, on all ranks."""
    pieces = [tensor for tensor in tensors if is_sharded(tensor) and (changed or not _is_whole(tensor))]
    if not pieces:
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters(pieces, modifier_rank=0 if changed else None):
        yield


@torch.no_grad()
def collect(
    tensors: Mapping[str, Tensor], keep: bool, change: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
) -> dict[str, Tensor]:
    """Whole copies in the host's memory, made one by one, where they are to be kept; to be called everywhere."""
    collected = {}
    for name, tensor in tensors.items():
        with whole([tensor]):
            if keep:
                copy = change(name, tensor.detach()).cpu()
                collected[name] = copy.clone() if copy.data_ptr() == tensor.data_ptr() else copy
    return collected


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Set whole tensors, or the pieces of sharded ones. values: whole, the same on every rank."""
    for name, tensor in tensors.items():
        with whole([tensor], changed=True):
            tensor.data.copy_(values[name])


def pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this rank holds of them, each number once or, of persistent ones, in both of its places."""
    held: list[Tensor] = []
    for tensor in tensors:
        if is_sharded(tensor):
            held.append(tensor.ds_tensor)  # type: ignore[attr-defined]
        if _is_whole(tensor):
            held.append(tensor.data)
    return held


def release(tensors: Iterable[Tensor]) -> None:
    """Leave nothing but the pieces, so that the next use gathers anew."""
    open_ones: list[Any] = [tensor for tensor in tensors if is_sharded(tensor) and _is_whole(tensor)]
    if open_ones:
        open_ones[0].partition(param_list=open_ones, has_been_updated=False)
