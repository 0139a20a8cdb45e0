"""Devices and dtypes by the names that users give them."""

import os

import torch

from selfnpo_core.errors import InputError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def best_device(name: str = "auto") -> torch.device:
    """ "auto" is the first accelerator (of several processes on one machine, each its own), or the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name} cannot be used ({str(error).splitlines()[0]}): use cpu or cuda") from None
