"""The oracle: a small network trained on real clips."""

from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from selfnpo_core.worlds.assets import real_batch as batch_of
from selfnpo_core.worlds.building import load, save
from selfnpo_core.worlds.oracle import train_oracle
from selfnpo_video.demo import world
from selfnpo_video.demo.judges import VideoOracle
from selfnpo_video.demo.moving import MovingThings


def real_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh real clips (count, 3, F, 32, 32) in [0, 1], quantised to bytes as stored ones are, and labels."""
    return batch_of(MovingThings(), count, generator)


class Stills(MovingThings):
    """Single frames of the world's clips: the thing, no motion."""

    unit = "frame"
    attributes = MappingProxyType({name: world.ATTRIBUTES[name] for name in ("thing",)})
    shape = (3, world.SIDE, world.SIDE)

    def draw_real(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pictures, labels = world.draw_stills(count, generator)
        return pictures, labels[:, : len(self.attributes)]


class StillReader(nn.Module):
    """Reads the thing of single frames with what looks at frames in the oracle."""

    def __init__(self, oracle: VideoOracle) -> None:
        super().__init__()
        self.frames = oracle.trunk.frames
        self.heads = nn.ModuleList(nn.Linear(oracle.trunk.SEEN, len(values)) for values in Stills.attributes.values())

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Pictures (B, 3, 32, 32) in [0, 1] → logits of the thing."""
        seen = self.frames(pictures * 2 - 1)
        return [head(seen) for head in self.heads]


def train(path: Path, *, stills: int = 1500, steps: int = 500, batch: int = 48, seed: int = 1) -> VideoOracle:
    """Train the oracle and write its weights to `path`; prints its accuracy on fresh real clips.

    What looks at frames learns from so many updates on single ones first: the frames of a clip tell it little more.
    """
    torch.manual_seed(seed)
    generator, oracle = torch.Generator().manual_seed(seed), VideoOracle()
    if path.exists():
        load(oracle, path)
        return oracle
    stages = path.with_name("oracle-stills.safetensors"), path.with_name("oracle-clips.safetensors")
    train_oracle(Stills(), StillReader(oracle), stages[0], steps=stills, batch=3 * batch, lr=2e-3, generator=generator)
    train_oracle(MovingThings(), oracle.train(), stages[1], steps=steps, batch=batch, lr=2e-3, generator=generator)
    save(with_unit_features(oracle), path)
    return oracle


@torch.no_grad()
def with_unit_features(oracle: VideoOracle) -> VideoOracle:
    """Scale the features so that those of real clips have unit variance on average: what a distance of them means."""
    generator = torch.Generator().manual_seed(3)
    features = torch.cat([oracle.trunk(real_batch(64, generator)[0]) for _ in range(16)])
    oracle.scale.copy_(features.var(dim=0).mean().rsqrt())
    return oracle
