"""Tensors that ZeRO-3 (1910.02054) or FSDP2 (2304.11277) hold in pieces: made whole, averaged piece by piece.

DeepSpeed keeps a rank's piece of a parameter flat and padded to equal lengths; `data` is whole while the parameter is
in use, and always for those that it calls persistent. Under FSDP2 a parameter is a `DTensor`, cut along its first
dimension. Ordinary tensors pass through unchanged. What is whole is the same on every rank, and all ranks must ask for
it together.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from selfnpo_core.system import private
from selfnpo_core.training.streaming import Walk


def split(network: nn.Module, device: torch.device, ignored: Iterable[nn.Parameter] = ()) -> None:
    """FSDP2: each rank keeps a piece of every parameter but the ignored ones, and a block is whole while it works.

    The parameters of the network are other objects afterwards. None stays whole between two forwards, so that what an
    average or an optimizer does to the pieces is seen by the next.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size() if dist.is_initialized() else 1,))
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": set(ignored), "reshard_after_forward": True}
    for blocks in network.children():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                fully_shard(block, **options)
    fully_shard(network, **options)


class Cutter:
    """ZeRO-3: each rank keeps its piece of every parameter that is handed in, as the first rank has it.

    A parameter is whole on the device for the time of its cutting only. Left to itself, DeepSpeed brings the whole
    network there first. settings: DeepSpeed's, by which the pieces are in the host's memory if they are offloaded.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._first: nn.Parameter | None = None

    def __call__(self, parameter: nn.Parameter) -> None:
        if self._first is not None:
            private.cut_too(self._first, parameter)
            return
        from deepspeed.runtime.zero.partition_parameters import Init

        Init(module=nn.ParameterList([parameter]), config_dict_or_path=self._settings, dtype=torch.float32)
        self._first = parameter


def own_part(value: Tensor, size: int) -> Tensor:
    """Of a whole tensor, what this rank's piece of so many numbers holds under ZeRO-3, without the padding."""
    return value.reshape(-1)[size * dist.get_rank() : size * (dist.get_rank() + 1)]


def _is_whole(tensor: Tensor) -> bool:
    return not private.is_cut(tensor) or private.is_gathered(tensor)


@contextmanager
def whole(tensors: Iterable[Tensor], *, changed: bool = False) -> Iterator[None]:
    """Within the block these are whole. changed: what the first rank writes into them is kept, on all ranks."""
    pieces = [tensor for tensor in tensors if private.is_cut(tensor) and (changed or not _is_whole(tensor))]
    if not pieces:
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters(pieces, modifier_rank=0 if changed else None):
        yield


def _unchanged(name: str, tensor: Tensor) -> Tensor:
    return tensor


def walk(
    tensors: Mapping[str, Tensor],
    change: Callable[[str, Tensor], Tensor] = _unchanged,
    dtype: torch.dtype | None = None,
) -> Walk:
    """Each of them whole. change: what is made of it, on all processes; dtype: the type that it then has."""

    def one_by_one(names: Sequence[str]) -> Iterator[Tensor]:
        for name in names:
            with whole([tensors[name]]):
                yield change(name, entire(tensors[name].detach()))

    outlines = {name: torch.empty(shape_of(t), dtype=dtype or t.dtype, device="meta") for name, t in tensors.items()}
    return Walk(outlines=outlines, one_by_one=one_by_one)


def shape_of(tensor: Tensor) -> torch.Size:
    """When it is whole."""
    return private.whole_shape(tensor) if private.is_cut(tensor) else tensor.shape


def entire(tensor: Tensor) -> Tensor:
    """All of a `DTensor`; to be called everywhere."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole value, the same on every rank, cut as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return value
    mesh = tensor.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, tensor.placements, src_data_rank=None)


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Set whole tensors, or the pieces of sharded ones. values: whole, the same on every rank."""
    for name, tensor in tensors.items():
        with whole([tensor], changed=True):
            tensor.data.copy_(like(values[name], tensor))


def pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this rank holds of them, each number once or, of persistent ones, in both of its places."""
    held: list[Tensor] = []
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            detached = tensor.detach()
            assert isinstance(detached, DTensor)
            held.append(detached.to_local())
            continue
        if private.is_cut(tensor):
            held.append(private.piece_of(tensor))
        if _is_whole(tensor):
            held.append(tensor.data)
    return held


def release(tensors: Iterable[Tensor]) -> None:
    """Leave nothing but the pieces, so that the next use gathers anew."""
    open_ones = [tensor for tensor in tensors if private.is_cut(tensor) and private.is_gathered(tensor)]
    if open_ones:
        private.let_go(open_ones)
