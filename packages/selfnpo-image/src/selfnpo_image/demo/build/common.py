"""What the stages share."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from selfnpo_image.demo import world


def cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def progress(steps: int, name: str, first: int = 0) -> tqdm[int]:
    return tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=5.0, dynamic_ncols=True)


def real_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh real pictures (count, 3, 64, 64) in [0, 1], quantised to bytes as stored pictures are, and labels."""
    pictures, labels = world.draw_world(count, generator)
    return pictures.float() / 255, labels


def save(module: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, partial)
    partial.rename(path)


def load(module: nn.Module, path: Path) -> nn.Module:
    module.load_state_dict(load_file(path))
    return module.eval()
