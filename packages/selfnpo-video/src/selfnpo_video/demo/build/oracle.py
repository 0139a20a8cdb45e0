"""The oracle: trained on real clips, with noise and blur so that it reads generated ones too."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from selfnpo_core.stages import cosine, load, progress, save
from selfnpo_video.demo import world
from selfnpo_video.demo.judges import VideoOracle, correct


def real_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh real clips (count, 3, F, 64, 64) in [0, 1], quantised to bytes as stored ones are, and labels."""
    clips, labels = world.draw_world(count, generator)
    return clips.float() / 255, labels


def augment(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Light blur on half of the clips and a little noise on all of them."""
    rows = torch.rand(len(clips), 1, 1, 1, 1, generator=generator) < 0.5
    blurred = F.avg_pool3d(F.pad(clips, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), stride=1)
    noise = 0.04 * torch.rand(len(clips), 1, 1, 1, 1, generator=generator)
    return torch.where(rows, blurred, clips) + noise * torch.randn(clips.shape, generator=generator)


def train(path: Path, *, steps: int = 1200, batch: int = 48, lr: float = 2e-3, seed: int = 1) -> VideoOracle:
    """Train the oracle and write its weights to `path`; prints its accuracy on fresh real clips."""
    torch.manual_seed(seed)
    generator, oracle = torch.Generator().manual_seed(seed), VideoOracle()
    if path.exists():
        load(oracle, path)
        return oracle
    optimizer = torch.optim.AdamW(oracle.parameters(), lr, weight_decay=0.01)
    bar = progress(steps, "oracle")
    for step in bar:
        clips, labels = real_batch(batch, generator)
        logits = oracle(augment(clips, generator))
        loss = sum(F.cross_entropy(head, labels[:, k]) for k, head in enumerate(logits))
        optimizer.param_groups[0]["lr"] = lr * cosine(step, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    oracle.eval()
    with torch.no_grad():
        clips, labels = real_batch(1000, generator)
        print(f"oracle: joint accuracy on real clips {correct(oracle(clips), labels).all(1).float().mean():.4f}")
    save(oracle, path)
    return oracle
