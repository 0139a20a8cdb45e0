"""The oracle: a small CNN trained on real pictures."""

from pathlib import Path

import torch
from torch import Tensor

from selfnpo_core.worlds.assets import real_batch as batch_of
from selfnpo_core.worlds.oracle import train_oracle
from selfnpo_image.demo.judges import Oracle
from selfnpo_image.demo.pictures import Things


def real_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh real pictures (count, 3, 64, 64) in [0, 1], quantised to bytes as stored pictures are, and labels."""
    return batch_of(Things(), count, generator)


def train(path: Path, *, steps: int = 2000, batch: int = 128, seed: int = 1) -> Oracle:
    """Train the oracle and write its weights to `path`; prints its accuracy on fresh real pictures."""
    torch.manual_seed(seed)
    generator, oracle = torch.Generator().manual_seed(seed), Oracle()
    train_oracle(Things(), oracle, path, steps=steps, batch=batch, lr=2e-3, generator=generator)
    return oracle
