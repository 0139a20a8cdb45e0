"""Two small networks that look at pictures of the demo world.

`Oracle` reads a picture's attributes: it gives prompt accuracy and the features for FID and KID.
`Judge` scores how well a picture is drawn and fits its caption; the difference of two scores is the log-odds that the
first would be preferred (Bradley–Terry), so it decides win rates.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from selfnpo_image.demo.world import ATTRIBUTES

FEATURES = 128


def _trunk(width: int, features: int) -> nn.Sequential:
    """(B, 3, 64, 64) in [−1, 1] → (B, features)."""
    layers: list[nn.Module] = []
    channels = (3, width, 2 * width, 4 * width, 4 * width)
    for before, after in itertools.pairwise(channels):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.GELU(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * width, features), nn.GELU())


class Oracle(nn.Module):
    """Reads the attributes of `world.ATTRIBUTES` from a picture."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.trunk = _trunk(width, FEATURES)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, len(values)) for values in ATTRIBUTES.values())

    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, 64, 64) in [0, 1] → features (B, 128)."""
        return self.trunk(pictures * 2 - 1)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Logits of each attribute: 3 tensors (B, number of values)."""
        features = self.features(pictures)
        return [head(features) for head in self.heads]


class Judge(nn.Module):
    """Scores a picture for a caption's labels; sigmoid(score_a − score_b) is the probability that a is preferred."""

    def __init__(self, width: int = 32, features: int = 128) -> None:
        super().__init__()
        self.trunk = _trunk(width, features)
        self.words = nn.ModuleList(nn.Embedding(len(values) + 1, features) for values in ATTRIBUTES.values())
        self.mix = nn.Sequential(nn.Linear(3 * features, features), nn.GELU(), nn.Linear(features, 1))

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """Pictures (B, 3, 64, 64) in [0, 1] and labels (B, 3) → scores (B,)."""
        seen = self.trunk(pictures * 2 - 1)
        asked = torch.stack([word(labels[:, k] + 1) for k, word in enumerate(self.words)]).sum(dim=0)
        return self.mix(torch.cat([seen, asked, seen * asked], dim=1))[:, 0]
