"""What the header of a safetensors file tells; no tensor is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from selfnpo_core.errors import InputError
from selfnpo_core.system.files import not_whole
from selfnpo_core.system.foreign import foreign_kind

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Floating types of 16 bits and more, as safetensors calls them."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Shapes and types of the tensors by name, types as safetensors calls them, and what is written beside."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Raises `InputError` for a file that is not whole."""
    try:
        with safe_open(str(path), framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return Header(
                shapes={name: tuple(part.get_shape()) for name, part in slices.items()},
                dtypes={name: str(part.get_dtype()) for name, part in slices.items()},
                metadata=dict(file.metadata() or {}),
            )
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} {foreign_kind(path) or not_whole(error)}") from None


def encoding_dtype(dtypes: Mapping[str, str], dtype: torch.dtype) -> torch.dtype:
    """Of a text encoder: the 16 bits that it was stored in, if it was, whatever the network beside it; else `dtype`."""
    stored = widest_dtype(dtypes)
    return stored if stored.itemsize == 2 else dtype


def widest_dtype(dtypes: Mapping[str, str]) -> torch.dtype:
    """One that holds every tensor's numbers. float8 fits into bfloat16; float16 and bfloat16 together into float32."""
    found = {DTYPES.get(name, torch.bfloat16) for name in dtypes.values() if name.startswith(("F", "BF"))}
    widest = max(found, key=lambda dtype: dtype.itemsize, default=torch.float32)
    return torch.float32 if found >= {torch.float16, torch.bfloat16} and widest.itemsize == 2 else widest
