"""The video demo's world: captioned clips of one thing in motion, 64×64, so that real data is unlimited.

A clip has a thing, a direction and a speed, all of which its caption names; place, size and ground are left open. The
things are real pictures (`selfnpo_core.worlds.things`). Motions neither begin nor end with a clip: every clip is a
part, beginning anywhere, of one of `LONGEST` frames that goes on in the same way, so that any nine frames of a longer
clip are a clip of this world too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.worlds import things
from selfnpo_core.worlds.things import to_uint8, with_article

SIDE, FRAMES, LONGEST = 64, 9, 33
THINGS = things.THINGS[::4]
"""A quarter of the things that there are pictures of."""
DIRECTIONS = ("to the left", "to the right", "up", "down")
SPEEDS = ("slowly", "quickly")
OPENINGS = ("", "there is ", "a video of ")
ATTRIBUTES = {"thing": THINGS, "direction": DIRECTIONS, "speed": SPEEDS}
"""In the order of the columns of labels (B, 3)."""

_AXES = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
_WAY = torch.tensor([[3.0, 4.0], [9.5, 11.0]])
"""Least and most pixels from a clip's first frame to its last, by speed."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """A batch of clips. labels: (B, 3); centre: (B, F, 2) pixels from the middle, x then y (down); extent: (B,) pixels;
    mirrored: (B,) bool; ground: (B, 3, 64, 64)."""

    labels: Tensor
    centre: Tensor
    extent: Tensor
    mirrored: Tensor
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

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    first = uniform(count, 1, low=0.0, high=1.0) * (LONGEST - frames)
    time = (first + torch.arange(frames) - (LONGEST - 1) / 2) / (FRAMES - 1)  # (B, F)
    least, most = _WAY[labels[:, 2]].unbind(dim=1)
    way = least + (most - least) * uniform(count, low=0.0, high=1.0)
    direction = _AXES[labels[:, 1]]
    middle = uniform(count, 2, low=-9.0, high=9.0)
    across = middle * (1 - 0.7 * direction.abs())
    return Clips(
        labels=labels,
        centre=across[:, None] + (time * way[:, None])[..., None] * direction[:, None],
        extent=uniform(count, low=36.0, high=44.0),
        mirrored=torch.rand(count, generator=generator) < 0.5,
        ground=things.grounds(torch.randint(len(things.GROUNDS), (count,), generator=generator), SIDE, generator),
    )


def render(clips: Clips) -> Tensor:
    """Draw the clips: (B, 3, F, 64, 64) float32 in [0, 1]."""
    which = clips.labels[:, 0] * 4  # of all things
    frames = [
        things.paste(
            clips.ground,
            which,
            centre=centre,
            extent=clips.extent,
            angle=torch.zeros(len(which)),
            mirrored=clips.mirrored,
        )
        for centre in clips.centre.unbind(dim=1)
    ]
    return torch.stack(frames, dim=2)


def caption(labels: Sequence[int], opening: str = "") -> str:
    """A clip in words. labels: 3 integers as in `ATTRIBUTES`."""
    thing, direction, speed = labels
    that = " that" if opening else ""
    return f"{opening}{with_article(THINGS[thing])}{that} moves {SPEEDS[speed]} {DIRECTIONS[direction]}"


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
    article, thing, moves, speed, direction = [*text.split(" ", 4), "", "", "", "", ""][:5]
    if article not in ("a", "an") or thing not in THINGS or moves != "moves":
        return None
    if speed not in SPEEDS or direction not in DIRECTIONS:
        return None
    return [THINGS.index(thing), DIRECTIONS.index(direction), SPEEDS.index(speed)]


def draw_world(count: int, generator: torch.Generator, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    """Real data: clips (count, 3, frames, 64, 64) uint8 and their labels (count, 3)."""
    labels = draw_labels(count, generator)
    parts = [to_uint8(render(draw_clips(part, generator, frames))) for part in labels.split(256)]
    return torch.cat(parts), labels


def draw_stills(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Single frames (count, 3, 64, 64) uint8 of as many clips, each at a random time, and labels (count, 3)."""
    labels = draw_labels(count, generator)
    clips, rows = draw_clips(labels, generator), torch.arange(count)
    at = torch.randint(FRAMES, (count,), generator=generator)
    return to_uint8(render(replace(clips, centre=clips.centre[rows, at][:, None])))[:, :, 0], labels
