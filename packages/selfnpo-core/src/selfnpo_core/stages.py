"""What the scripts that make the demo models share: schedule, progress, and stages kept on disk."""

import math
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn
from tqdm import tqdm


def cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def progress(steps: int, name: str, first: int = 0) -> "tqdm[int]":
    return tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=5.0, dynamic_ncols=True)


def save(module: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_model(module, str(partial))  # also where tensors are shared, as T5's embeddings are
    partial.rename(path)


def load(module: nn.Module, path: Path) -> nn.Module:
    load_model(module, path)
    return module.eval()
