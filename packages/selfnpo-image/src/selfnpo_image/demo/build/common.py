"""What the stages share."""

from __future__ import annotations

import torch
from torch import Tensor

from selfnpo_core.stages import cosine, load, progress, save
from selfnpo_image.demo import world

__all__ = ["cosine", "load", "progress", "real_batch", "save"]


def real_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh real pictures (count, 3, 64, 64) in [0, 1], quantised to bytes as stored pictures are, and labels."""
    pictures, labels = world.draw_world(count, generator)
    return pictures.float() / 255, labels
