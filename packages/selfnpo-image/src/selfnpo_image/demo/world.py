"""The demo world: captioned 64×64 pictures, each of one thing, small or large, on a softly shaded ground.

The things are real pictures (`selfnpo_core.worlds.things`); place, tilt, exact size and shade are left open, and half
of the things are seen from the other side. So there is no end of real data, and its labels are exact.

Everything random comes from a `torch.Generator`; the same generator state draws the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfnpo_core.worlds import things
from selfnpo_core.worlds.things import GROUNDS, grounds, paste, to_uint8, with_article

SIDE = 64
EVERY = 3
THINGS = things.THINGS[::EVERY]
"""A third of the things that there are pictures of."""
SIZES = ("small", "large")
OPENINGS = ("", "there is ", "a picture of ")
ATTRIBUTES = {"thing": THINGS, "size": SIZES, "ground": GROUNDS}
"""In the order of the columns of labels (B, 3)."""

_EXTENT = torch.tensor([[28.0, 34.0], [50.0, 58.0]])
"""Least and most pixels of the thing's tile, by size."""


def draw_labels(count: int, generator: torch.Generator) -> Tensor:
    """Random attributes: (count, 3) int64."""
    columns = [torch.randint(len(values), (count,), generator=generator) for values in ATTRIBUTES.values()]
    return torch.stack(columns, dim=1)


def render(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, 64, 64) float32 in [0, 1] of labels (B, 3), with what the caption leaves open drawn."""
    count = len(labels)
    least, most = _EXTENT[labels[:, 1]].unbind(dim=1)
    extent = least + (most - least) * torch.rand(count, generator=generator)
    room = 0.4 * (SIDE - extent)
    return paste(
        grounds(labels[:, 2], SIDE, generator),
        labels[:, 0] * EVERY,
        centre=room[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1),
        extent=extent,
        angle=0.3 * torch.rand(count, generator=generator) - 0.15,
        mirrored=torch.rand(count, generator=generator) < 0.5,
    )


def caption(labels: Sequence[int], opening: str = "", names: Sequence[str] = THINGS) -> str:
    """One picture in words. labels: 3 integers as in `ATTRIBUTES`; names: of the things."""
    thing, size, ground = labels
    return f"{opening}a {SIZES[size]} {names[thing]} on {with_article(GROUNDS[ground])} ground"


def draw_captions(labels: Tensor, generator: torch.Generator) -> list[str]:
    """A caption for each row of labels (B, 3), with a random opening."""
    opening = torch.randint(len(OPENINGS), (len(labels),), generator=generator).tolist()
    return [caption(row, OPENINGS[o]) for row, o in zip(labels.tolist(), opening, strict=True)]


def training_captions(count: int = 1000, seed: int = 11) -> list[str]:
    """The captions that negative weights are trained with; no picture is drawn."""
    generator = torch.Generator().manual_seed(seed)
    return draw_captions(draw_labels(count, generator), generator)


def parse_caption(text: str) -> list[int] | None:
    """The labels that a caption of this world names, or None for any other sentence."""
    text = " ".join(text.lower().strip().rstrip(".").split())
    for opening in OPENINGS[1:]:
        text = text.removeprefix(opening)
    words = text.split()
    if len(words) != 7 or words[0] != "a" or words[3] != "on" or words[4] not in ("a", "an") or words[6] != "ground":
        return None
    size, thing, ground = words[1], words[2], words[5]
    if size not in SIZES or thing not in THINGS or ground not in GROUNDS:
        return None
    return [THINGS.index(thing), SIZES.index(size), GROUNDS.index(ground)]


def draw_world(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Real data: pictures (count, 3, 64, 64) uint8 and their labels (count, 3)."""
    labels = draw_labels(count, generator)
    return torch.cat([to_uint8(render(part, generator)) for part in labels.split(1024)]), labels
