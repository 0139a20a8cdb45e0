"""What a piece of work consists of, whatever the machine: FLOPs, operations, waits for the device, rows of forwards."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfnpo_core.training.work import CountedFlops


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one call. flops: of products, convolutions and attention, backward passes included. operations: all that torch
    dispatches, views included. waits: numbers that the host reads off the device. rows: of forwards of the denoiser."""

    flops: int
    operations: int
    waits: int
    rows: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


class _Counter(CountedFlops):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()
        self.operations = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.operations += 1
        self.waits += func.overloadpacket is torch.ops.aten._local_scalar_dense
        return super().__torch_dispatch__(func, types, args, kwargs)


def counted(work: Callable[[], object], networks: Iterable[nn.Module]) -> Counts:
    """Count what one call of `work` does; rows are those of these networks."""
    rows = 0

    def add_rows(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal rows
        rows += next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

    hooks = [network.register_forward_pre_hook(add_rows, with_kwargs=True) for network in networks]
    try:
        with _Counter() as counter:
            work()
    finally:
        for hook in hooks:
            hook.remove()
    return Counts(flops=counter.total, operations=counter.operations, waits=counter.waits, rows=rows)
