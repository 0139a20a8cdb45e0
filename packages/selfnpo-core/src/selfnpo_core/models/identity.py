"""Which base model is this? An exact hash of its weights, and a fingerprint that survives a change of dtype.

Negative weights belong to the base they were made from. The hash tells whether a base is the very same. The same base
in fp16 has another hash, but its fingerprint, a sample of its weights, lies within rounding of the first.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

FINGERPRINT_SIZE = 256
SAME_BASE = 5e-3
"""Relative distance of fingerprints below which two bases are one: bf16 rounds by 1e-3, fine-tuning moves by more."""


def weights_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """sha256 over name, shape and float32 bytes of every tensor, in order of their names. Adapters do not count."""
    digest = hashlib.sha256()
    for name, tensor in _base_tensors(weights):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().flatten().numpy().data)
    return digest.hexdigest()


def fingerprint(weights: nn.Module | Mapping[str, Tensor]) -> list[float]:
    """`FINGERPRINT_SIZE` weights, evenly spaced over all of them in order of the tensors' names."""
    tensors = list(_base_tensors(weights))
    total = sum(tensor.numel() for _, tensor in tensors)
    wanted = [i * total // FINGERPRINT_SIZE for i in range(FINGERPRINT_SIZE)] if total else []
    values: list[float] = []
    start = 0
    for _, tensor in tensors:
        end = start + tensor.numel()
        places = [place - start for place in wanted if start <= place < end]
        if places:
            picked = tensor.detach().flatten()[torch.tensor(places, device=tensor.device)]
            values += [float(f"{value:.7g}") for value in picked.float().tolist()]
        start = end
    return values


def distance(one: list[float], other: list[float]) -> float:
    """‖a − b‖/‖a‖ of two fingerprints: an estimate of how far apart the two bases are. Infinite if not comparable."""
    if len(one) != len(other) or not one:
        return math.inf
    size = math.hypot(*one)
    apart = math.dist(one, other)
    return apart / size if size else (0.0 if apart == 0 else math.inf)


def _base_tensors(weights: nn.Module | Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Floating tensors under the names they have without PEFT's wrappers, sorted by name."""
    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    plain = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in named.items()
        if ".lora_" not in name and tensor.is_floating_point()
    }
    yield from sorted(plain.items())
