"""`torch.compile` for a while, where there is a compiler."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from selfnpo_core.system import private


def why_not(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device, in one line, found out by compiling a little; `None` if it can."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a compiler, its absence or its cache may raise
        return " ".join(str(error).split())[:160] or type(error).__name__
    return None


@contextmanager
def compiled(network: nn.Module) -> Iterator[None]:
    """Calls of the network are compiled within the block; afterwards it is as before, and what was made is let go."""
    before = private.compiled_call(network)
    network.compile()
    try:
        yield
    finally:
        private.set_compiled_call(network, before)
        torch.compiler.reset()
