"""A world without a model family: a bright dot in the left or the right half of an 8×8 picture."""

from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import nn

from selfnpo_core.evaluation import Moments
from selfnpo_core.worlds.world import Judges, World


class Eyes(nn.Module):
    """Brightness of the two halves; the brighter one is the answer."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Identity()])

    def features(self, x):
        return torch.stack([x[..., :4].flatten(1).mean(1), x[..., 4:].flatten(1).mean(1)], dim=1)

    def forward(self, x):
        return [head(self.features(x)) for head in self.heads]


class Taste(nn.Module):
    """Likes light in the half that was asked for."""

    def forward(self, x, labels):
        return Eyes().features(x).gather(1, labels)[:, 0]


class Dots(World):
    unit, distance, shape = "dot", "fd", (3, 8, 8)
    attributes: ClassVar = {"side": ("left", "right")}

    def draw_labels(self, count, generator):
        return torch.randint(2, (count, 1), generator=generator)

    def draw_captions(self, labels, generator):
        return [f"a dot on the {self.attributes['side'][side]}" for (side,) in labels.tolist()]

    def parse_caption(self, text):
        word = text.removeprefix("a dot on the ")
        return [self.attributes["side"].index(word)] if word in self.attributes["side"] else None

    def draw_real(self, count, generator):
        labels = self.draw_labels(count, generator)
        data = torch.randint(40, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        for row, (side,) in enumerate(labels.tolist()):
            data[row, :, 2:6, 4 * side : 4 * side + 4] += 200
        return data, labels

    def draw_samples(self, pipe, task, *, guidance_scale, steps, batch):
        """`pipe` is asked with noise and labels, as a network with two rows a sample."""
        for first in range(0, len(task.seeds), batch):
            part = slice(first, first + batch)
            noise = torch.stack([torch.randn(2, generator=torch.Generator().manual_seed(s)) for s in task.seeds[part]])
            yield pipe(noise, task.labels[part], guidance_scale)

    def denoiser(self, pipe):
        return pipe.denoiser

    def shipped_judges(self):
        real, _ = self.draw_real(500, torch.Generator().manual_seed(0))
        eyes = Eyes()
        return Judges(oracle=eyes, preference=Taste(), reference=Moments.of(eyes.features(real / 255)))


class Painter:
    """Puts the dot where it is asked to with a chance that guidance raises; two rows of its network a dot."""

    def __init__(self):
        self.denoiser, self.scheduler = nn.Identity(), SimpleNamespace()

    def __call__(self, noise, labels, scale):
        self.denoiser(torch.cat([noise, noise]))
        right = noise[:, 0] < scale - 2
        data = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
        for row, (side, good) in enumerate(zip(labels[:, 0].tolist(), right.tolist(), strict=True)):
            half = side if good else 1 - side
            data[row, :, 2:6, 4 * half : 4 * half + 4] = 220
        return data
