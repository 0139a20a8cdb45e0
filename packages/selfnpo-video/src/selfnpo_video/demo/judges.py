"""Two small networks that look at clips of the video demo's world.

`VideoOracle` reads thing, direction and speed, and gives the features for a Fréchet video distance (FVD, 1812.01717,
with this network in place of I3D). `VideoJudge` scores how well a clip is drawn, moves and fits its caption; the
difference of two scores is the log-odds that the first would be preferred (Bradley–Terry), so it decides win rates.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from selfnpo_video.demo.world import ATTRIBUTES

FEATURES = 64


class Trunk(nn.Module):
    """2D convolutions frame by frame, then 1D convolutions over time on what they saw."""

    SEEN = 96
    """Numbers seen in a frame."""

    def __init__(self, features: int, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, width, 2 * width, 3 * width, 4 * width)
        for stride, (before, after) in zip((1, 2, 2, 2), pairwise(channels), strict=True):
            convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.GELU()]
        self.frames = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, self.SEEN))
        seen = self.SEEN
        self.time = nn.Sequential(
            nn.Conv1d(seen, seen, 3, padding=1), nn.GELU(), nn.Conv1d(seen, seen, 3, stride=2, padding=1), nn.GELU()
        )
        self.out = nn.Sequential(nn.Linear(3 * seen, features), nn.GELU())

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, F, 32, 32) in [0, 1], F ≥ 5 → features (B, n)."""
        count, _, frames, _, _ = clips.shape
        seen = self.frames((clips * 2 - 1).transpose(1, 2).flatten(0, 1)).reshape(count, frames, -1)
        steps = self.time(seen.transpose(1, 2))
        third = steps.shape[-1] // 3 or 1
        parts = [steps[..., :third], steps[..., third:-third], steps[..., -third:]]
        return self.out(torch.cat([part.mean(dim=-1) for part in parts if part.shape[-1]], dim=1))


class VideoOracle(nn.Module):
    """Reads the attributes of `world.ATTRIBUTES` from a clip. scale: of the features, see `with_unit_features`."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.trunk = Trunk(FEATURES)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, len(values)) for values in ATTRIBUTES.values())

    def features(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, F, 32, 32) in [0, 1], F ≥ 5 → features (B, 64)."""
        return self.scale * self.trunk(clips)

    def forward(self, clips: Tensor) -> list[Tensor]:
        """Logits of each attribute: 3 tensors (B, number of values)."""
        features = self.trunk(clips)
        return [head(features) for head in self.heads]


class VideoJudge(nn.Module):
    """Scores a clip for a caption's labels; sigmoid(score_a − score_b) is the probability that a is preferred."""

    def __init__(self, features: int = 96) -> None:
        super().__init__()
        self.trunk = Trunk(features)
        self.words = nn.ModuleList(nn.Embedding(len(values), features) for values in ATTRIBUTES.values())
        self.mix = nn.Sequential(nn.Linear(3 * features, features), nn.GELU(), nn.Linear(features, 1))

    def forward(self, clips: Tensor, labels: Tensor) -> Tensor:
        """Clips (B, 3, F, 32, 32) in [0, 1] and labels (B, 3) → scores (B,)."""
        seen = self.trunk(clips)
        asked = torch.stack([word(labels[:, k]) for k, word in enumerate(self.words)]).sum(dim=0)
        return self.mix(torch.cat([seen, asked, seen * asked], dim=1))[:, 0]
