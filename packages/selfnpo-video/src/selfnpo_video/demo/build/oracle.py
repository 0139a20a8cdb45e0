"""The oracle: a small network trained on real clips."""

from pathlib import Path

import torch
from torch import Tensor

from selfnpo_core.worlds.assets import real_batch as batch_of
from selfnpo_core.worlds.oracle import train_oracle
from selfnpo_video.demo.judges import VideoOracle
from selfnpo_video.demo.moving import MovingShapes


def real_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh real clips (count, 3, F, 64, 64) in [0, 1], quantised to bytes as stored ones are, and labels."""
    return batch_of(MovingShapes(), count, generator)


def train(path: Path, *, steps: int = 800, batch: int = 48, seed: int = 1) -> VideoOracle:
    """Train the oracle and write its weights to `path`; prints its accuracy on fresh real clips."""
    torch.manual_seed(seed)
    generator, oracle = torch.Generator().manual_seed(seed), VideoOracle()
    train_oracle(MovingShapes(), oracle, path, steps=steps, batch=batch, lr=2e-3, generator=generator)
    return oracle
