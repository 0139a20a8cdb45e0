"""The oracle: a small CNN trained on real pictures, with noise and blur so that it reads generated ones too."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from selfnpo_image.demo.build import common
from selfnpo_image.demo.judges import Oracle, correct


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Light blur on half of the rows and a little noise on all of them."""
    rows = torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = 0.04 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return torch.where(rows, blurred, pictures) + noise * torch.randn(pictures.shape, generator=generator)


def train(path: Path, *, steps: int = 1200, batch: int = 128, lr: float = 2e-3, seed: int = 1) -> Oracle:
    """Train the oracle and write its weights to `path`; prints its accuracy on fresh real pictures."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    oracle = Oracle()
    if path.exists():
        return common.load(oracle, path)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: common.cosine(s, steps))
    for _ in common.progress(steps, "oracle"):
        pictures, labels = common.real_batch(batch, generator)
        logits = oracle(augment(pictures, generator))
        loss = sum(F.cross_entropy(head, labels[:, k], ignore_index=-1) for k, head in enumerate(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    oracle.eval()
    with torch.no_grad():
        pictures, labels = common.real_batch(4000, generator)
        print(f"oracle: joint accuracy on real pictures {correct(oracle(pictures), labels).all(1).float().mean():.4f}")
    common.save(oracle, path)
    return oracle
