"""The video demo's world: captioned 32×32 clips of nine frames, each of one thing that moves over a shaded ground.

The things are real pictures (`selfnpo_core.worlds.things`); a caption names the thing, its direction and its speed, and
place, tilt, exact size and speed, and the ground are left open. So there is no end of real data, and its labels are
exact. Less is left open than in the world of pictures: a transformer learns shapes far more slowly than a UNet. Motions
neither begin nor end with a clip: every clip is a part, beginning anywhere, of one of `LONGEST` frames that goes on in
the same way, so that any nine frames of a longer clip are a clip of this world too.

Everything random comes from a `torch.Generator`; the same generator state draws the same clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.worlds import things
from selfnpo_core.worlds.things import GROUNDS, grounds, paste, to_uint8, with_article

SIDE, FRAMES, LONGEST = 32, 9, 17
EVERY = 6
THINGS = things.THINGS[::EVERY]
"""A sixth of the things that there are pictures of."""
DIRECTIONS = ("to the left", "to the right", "up", "down")
SPEEDS = ("slowly", "quickly")
OPENINGS = ("", "there is ", "a video of ")
ATTRIBUTES = {"thing": THINGS, "direction": DIRECTIONS, "speed": SPEEDS}
"""In the order of the columns of labels (B, 3)."""

_AHEAD = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
_WAY = torch.tensor([[1.8, 2.6], [7.0, 8.5]])
"""Least and most pixels from the first to the last of `FRAMES`, by speed."""
_EXTENT = (19.0, 21.0)
"""Least and most pixels of the thing's tile."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """A batch of clips. labels: (B, 3); centre: (B, F, 2) pixels from the middle, x then y (down); extent, angle: (B,);
    ground: (B, 3, 32, 32) in [0, 1]."""

    labels: Tensor
    centre: Tensor
    extent: Tensor
    angle: Tensor
    ground: Tensor


def draw_labels(count: int, generator: torch.Generator) -> Tensor:
    """Random attributes: (count, 3) int64."""
    columns = [torch.randint(len(values), (count,), generator=generator) for values in ATTRIBUTES.values()]
    return torch.stack(columns, dim=1)


def draw_clips(labels: Tensor, generator: torch.Generator, frames: int = FRAMES) -> Clips:
    """Fill in what the caption leaves open. labels: (B, 3); frames: up to `LONGEST`."""
    if not 0 < frames <= LONGEST:
        raise InputError(f"clips of {frames} frames: a motion of this world goes on for {LONGEST} of them")
    count = len(labels)

    def uniform(low: Tensor | float, high: Tensor | float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*(shape or (count,)), generator=generator)

    first = uniform(0.0, 1.0, count, 1) * (LONGEST - frames)
    time = (first + torch.arange(frames) - (LONGEST - 1) / 2) / (FRAMES - 1)  # (B, F)
    ahead = _AHEAD[labels[:, 1]]
    least, most = _WAY[labels[:, 2]].unbind(dim=1)
    along = time * uniform(least, most)[:, None]
    middle = uniform(-2.0, 2.0, count, 2)
    return Clips(
        labels=labels,
        centre=middle[:, None] + along[..., None] * ahead[:, None],
        extent=uniform(*_EXTENT),
        angle=uniform(-0.05, 0.05),
        ground=grounds(torch.randint(len(GROUNDS), (count,), generator=generator), SIDE, generator),
    )


def render(clips: Clips) -> Tensor:
    """Draw the clips: (B, 3, F, 32, 32) float32 in [0, 1]."""
    which, unturned = clips.labels[:, 0] * EVERY, torch.zeros(len(clips.labels), dtype=torch.bool)
    frames = [
        paste(clips.ground, which, centre=centre, extent=clips.extent, angle=clips.angle, mirrored=unturned)
        for centre in clips.centre.unbind(dim=1)
    ]
    return torch.stack(frames, dim=2)


def caption(labels: Sequence[int], opening: str = "") -> str:
    """A clip in words. labels: 3 integers as in `ATTRIBUTES`."""
    thing, direction, speed = labels
    that = "that " if opening else ""
    return f"{opening}{with_article(THINGS[thing])} {that}moves {SPEEDS[speed]} {DIRECTIONS[direction]}"


def draw_captions(labels: Tensor, generator: torch.Generator) -> list[str]:
    """A caption for each row of labels (B, 3), with a random opening."""
    opening = torch.randint(len(OPENINGS), (len(labels),), generator=generator).tolist()
    return [caption(row, OPENINGS[o]) for row, o in zip(labels.tolist(), opening, strict=True)]


def training_captions(count: int = 500, seed: int = 11) -> list[str]:
    """The captions that negative weights are trained with; no clip is drawn."""
    generator = torch.Generator().manual_seed(seed)
    return draw_captions(draw_labels(count, generator), generator)


def parse_caption(text: str) -> list[int] | None:
    """The labels that a caption of this world names, or None for any other sentence."""
    text = " ".join(text.lower().strip().rstrip(".").split())
    for opening in OPENINGS[1:]:
        if text.startswith(opening):
            text = text.removeprefix(opening).replace(" that ", " ", 1)
    article, thing, verb, speed, direction = [*text.split(" ", 4), *[""] * 5][:5]
    known = thing in THINGS and speed in SPEEDS and direction in DIRECTIONS
    if article not in ("a", "an") or verb != "moves" or not known:
        return None
    return [THINGS.index(thing), DIRECTIONS.index(direction), SPEEDS.index(speed)]


def draw_world(count: int, generator: torch.Generator, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    """Real data: clips (count, 3, frames, 32, 32) uint8 and their labels (count, 3)."""
    labels = draw_labels(count, generator)
    parts = [to_uint8(render(draw_clips(part, generator, frames))) for part in labels.split(256)]
    return torch.cat(parts), labels


def draw_stills(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Single frames (count, 3, 32, 32) uint8 of as many clips, each at a random time, and labels (count, 3)."""
    labels = draw_labels(count, generator)
    return to_uint8(render(draw_clips(labels, generator, frames=1)))[:, :, 0], labels
