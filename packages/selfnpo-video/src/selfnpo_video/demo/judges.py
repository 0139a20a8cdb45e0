"""A small network that looks at clips: it reads shape, colour and motion, and gives the features for a Fréchet video
distance (FVD, 1812.01717, with this network in place of I3D)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from selfnpo_video.demo.world import ATTRIBUTES

FEATURES = 64


class VideoOracle(nn.Module):
    """2D convolutions frame by frame, then 1D convolutions over time on what they saw."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, width, 2 * width, 3 * width, 4 * width)
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        self.frames = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 96))
        self.time = nn.Sequential(
            nn.Conv1d(96, 96, 3, padding=1), nn.GELU(), nn.Conv1d(96, 96, 3, stride=2, padding=1), nn.GELU()
        )
        self.out = nn.Sequential(nn.Linear(3 * 96, FEATURES), nn.GELU())
        self.heads = nn.ModuleList(nn.Linear(FEATURES, len(values)) for values in ATTRIBUTES.values())

    def features(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, F, 64, 64) in [0, 1], F ≥ 3 → features (B, 64)."""
        count, _, frames, _, _ = clips.shape
        seen = self.frames((clips * 2 - 1).transpose(1, 2).flatten(0, 1)).reshape(count, frames, -1)
        steps = self.time(seen.transpose(1, 2))
        third = steps.shape[-1] // 3 or 1
        parts = [steps[..., :third], steps[..., third:-third], steps[..., -third:]]
        return self.out(torch.cat([part.mean(dim=-1) for part in parts if part.shape[-1]], dim=1))

    def forward(self, clips: Tensor) -> list[Tensor]:
        """Logits of each attribute: 3 tensors (B, number of values)."""
        features = self.features(clips)
        return [head(features) for head in self.heads]


def correct(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Which attributes are right: (B, 3) bool."""
    return torch.stack([head.argmax(dim=1) for head in logits], dim=1) == labels
