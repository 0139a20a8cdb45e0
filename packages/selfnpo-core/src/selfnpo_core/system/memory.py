"""How much memory a piece of code needs, counted in bytes of tensors by torch's profiler, and how much there is."""

from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from selfnpo_core.system import private


def peak_tensor_bytes(work: Callable[[], Any], *, grad: bool = False) -> int:
    """The most that `work` holds at once on the CPU beyond what was there before it, in bytes.

    What is freed by `work` and was allocated before it counts as nothing. Work space of the kernels is counted where
    they take it from torch's allocator.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured, torch.set_grad_enabled(grad):
        kept = work()  # the result counts too, while it is being made
    del kept
    held = peak = 0
    for _, change in private.memory_changes(measured):
        held += change
        peak = max(peak, held)
    return peak


def available(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def size_text(count: int) -> str:
    """For people: "1.5 GiB"."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
