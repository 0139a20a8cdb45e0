"""Training an oracle on real samples, with noise and blur so that it reads generated ones too."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfnpo_core.worlds.assets import real_batch
from selfnpo_core.worlds.building import cosine, load, progress, save
from selfnpo_core.worlds.world import World, correct


def augment(data: Tensor, generator: torch.Generator) -> Tensor:
    """Light blur on half of the samples and a little noise on all of them. data: (B, 3, …, H, W)."""
    column = (len(data), *[1] * (data.ndim - 1))
    rows = torch.rand(column, generator=generator) < 0.5
    planes = data.reshape(-1, 1, *data.shape[-2:])
    blurred = F.avg_pool2d(F.pad(planes, (1, 1, 1, 1), mode="replicate"), 3, stride=1).reshape(data.shape)
    noise = 0.04 * torch.rand(column, generator=generator)
    return torch.where(rows, blurred, data) + noise * torch.randn(data.shape, generator=generator)


def train_oracle(
    world: World, oracle: nn.Module, path: Path, *, steps: int, batch: int, lr: float, generator: torch.Generator
) -> nn.Module:
    """The oracle with the weights at `path`, trained now unless they are there; prints its accuracy on real samples."""
    if path.exists():
        return load(oracle, path)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: cosine(s, steps))
    for _ in progress(steps, "oracle"):
        data, labels = real_batch(world, batch, generator)
        logits = oracle(augment(data, generator))
        loss = sum(F.cross_entropy(head, labels[:, k], ignore_index=-1) for k, head in enumerate(logits))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
    oracle.eval()
    right = []
    with torch.no_grad():
        for _ in range(10):
            data, labels = real_batch(world, 200, generator)
            right.append(correct(oracle(data), labels).all(dim=1))
    print(f"oracle: joint accuracy on real {world.unit}s {torch.cat(right).float().mean():.4f}")
    save(oracle, path)
    return oracle
