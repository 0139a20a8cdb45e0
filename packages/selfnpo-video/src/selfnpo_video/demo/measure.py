"""Sampling on the video demo's world, and what the oracle says of the samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from selfnpo_core.evaluation import Moments, frechet_distance
from selfnpo_video.demo import world
from selfnpo_video.demo.judges import VideoOracle, correct
from selfnpo_video.sampling import Settings, draw
from selfnpo_video.shapes import ClipSize

SIZE = ClipSize(frames=world.FRAMES, height=world.SIDE, width=world.SIDE)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of every arm: labels (N, 3), their captions and one seed each."""

    labels: Tensor
    prompts: list[str]
    seeds: list[int]

    @classmethod
    def draw(cls, count: int, seed: int) -> "Task":
        """`count` random captions with seeds of their own; another `seed` shares nothing with this one."""
        generator = torch.Generator().manual_seed(seed)
        labels = world.draw_labels(count, generator)
        seeds = [seed * 1_000_000 + i for i in range(count)]
        return cls(labels=labels, prompts=world.draw_captions(labels, generator), seeds=seeds)


def sample(pipe: Any, task: Task, *, guidance_scale: float, steps: int, batch: int = 32, name: str = "") -> Tensor:
    """Clips (N, 3, F, 64, 64) uint8 by the stock pipeline; every clip has its own generator."""
    settings = Settings(guidance_scale=guidance_scale, steps=steps, size=SIZE, batch_size=batch)
    drawn = draw(pipe, task.prompts, task.seeds, settings)
    clips = [frames for _, frames in tqdm(drawn, total=len(task.prompts), desc=name, unit="clip", leave=False)]
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)


@torch.no_grad()
def judge(oracle: VideoOracle, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, 64), and which attributes are right, (N, 3) bool. clips: (N, 3, F, 64, 64) uint8."""
    features, right = [], []
    for some, asked in zip(clips.split(64), labels.split(64), strict=True):
        seen = oracle.features(some.float() / 255)
        features.append(seen)
        right.append(correct([head(seen) for head in oracle.heads], asked))
    return torch.cat(features), torch.cat(right)


def sweep(
    pipe: Any, oracle: VideoOracle, reference: Moments, *, scales: Sequence[float], count: int, seed: int, steps: int
) -> dict[str, dict[str, float]]:
    """Fréchet video distance and prompt accuracy of plain classifier-free guidance at several scales."""
    task, table = Task.draw(count, seed), {}
    for scale in scales:
        clips = sample(pipe, task, guidance_scale=scale, steps=steps, name=f"scale {scale:g}")
        features, right = judge(oracle, clips, task.labels)
        table[f"{scale:g}"] = {
            "fvd": round(frechet_distance(Moments.of(features), reference), 2),
            "accuracy": round(right.all(dim=1).float().mean().item(), 4),
            **{name: round(right[:, k].float().mean().item(), 4) for k, name in enumerate(world.ATTRIBUTES)},
        }
    return table
