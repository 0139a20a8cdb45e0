"""The video demo's world: captioned clips of one moving shape, 64×64, drawn by code, so that real data is unlimited.

A clip has a shape, a colour and a motion, all of which its caption names; place, size, speed and background are left
open. Motions neither begin nor end with a clip: every clip is a part, beginning anywhere, of one of `LONGEST` frames
that goes on in the same way, so that any nine frames of a longer clip are a clip of this world too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.worlds.shapes import COLOURS, DISTANCES, RGB, SHAPES
from selfnpo_core.worlds.things import to_uint8, with_article

SIDE, FRAMES, LONGEST = 64, 9, 33
MOTIONS = (
    "moves to the left",
    "moves to the right",
    "moves up",
    "moves down",
    "grows",
    "shrinks",
    "turns",
    "bounces",
)
OPENINGS = ("", "there is ", "a video of ")
ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "motion": MOTIONS}
"""In the order of the columns of labels (B, 3)."""
_ROUND = (SHAPES.index("circle"), SHAPES.index("ring"))
_DIRECTIONS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
_GROWS, _SHRINKS, _TURNS, _BOUNCES = (MOTIONS.index(word) for word in ("grows", "shrinks", "turns", "bounces"))


@dataclass(frozen=True, kw_only=True)
class Clips:
    """A batch of clips, by frame. labels: (B, 3); centre: (B, F, 2) pixels from the middle, x then y (down);
    radius, angle: (B, F); rgb: (B, 3); ground: (B, 2, 3) tones of the background; ground_angle: (B,)."""

    labels: Tensor
    centre: Tensor
    radius: Tensor
    angle: Tensor
    rgb: Tensor
    ground: Tensor
    ground_angle: Tensor


def draw_labels(count: int, generator: torch.Generator) -> Tensor:
    """Random (count, 3) int64. What is round does not turn: nobody would see it."""
    columns = [torch.randint(len(values), (count,), generator=generator) for values in ATTRIBUTES.values()]
    labels = torch.stack(columns, dim=1)
    hidden = (labels[:, 2] == _TURNS) & ((labels[:, 0] == _ROUND[0]) | (labels[:, 0] == _ROUND[1]))
    others = torch.randint(_TURNS, (count,), generator=generator)
    labels[:, 2] = torch.where(hidden, others, labels[:, 2])
    return labels


def draw_clips(labels: Tensor, generator: torch.Generator, frames: int = FRAMES) -> Clips:
    """Fill in what the caption leaves open. labels: (B, 3); frames: up to `LONGEST`."""
    if not 0 < frames <= LONGEST:
        raise InputError(f"clips of {frames} frames: a motion of this world goes on for {LONGEST} of them")
    count, motion = len(labels), labels[:, 2]

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    first = uniform(count, 1, low=0.0, high=1.0) * (LONGEST - frames)
    time = (first + torch.arange(frames) - (LONGEST - 1) / 2) / (FRAMES - 1)  # (B, F)
    middle = uniform(count, 2, low=-9.0, high=9.0)
    size = uniform(count, low=12.0, high=16.0)
    way = uniform(count, low=7.0, high=9.0)
    straight = motion < len(_DIRECTIONS)
    direction = _DIRECTIONS[motion.clamp(max=len(_DIRECTIONS) - 1)] * straight[:, None]
    along = (time * way[:, None])[..., None] * direction[:, None]
    across = middle * (1 - direction.abs()) + 0.3 * middle * direction.abs()
    centre = across[:, None] + along
    hops = time * uniform(count, 1, low=0.95, high=1.05) + uniform(count, 1, low=0.0, high=1.0)
    bouncing = (motion == _BOUNCES)[:, None]
    height = torch.where(bouncing, 14.0 - 22.0 * (math.pi * hops).sin().abs(), centre[..., 1])
    centre = torch.stack([centre[..., 0], height], dim=-1)
    swelling = (motion == _GROWS).float() - (motion == _SHRINKS).float()
    growth = uniform(count, 1, low=1.22, high=1.28).pow(time * swelling[:, None])
    between = uniform(count, low=11.0, high=13.0)
    radius = torch.where(swelling == 0, size, between)[:, None] * growth
    sign = torch.randint(2, (count, 1), generator=generator) * 2.0 - 1
    turned = uniform(count, 1, low=-math.pi, high=math.pi) + sign * uniform(count, 1, low=1.1, high=1.5) * time
    angle = torch.where((motion == _TURNS)[:, None], turned, uniform(count, 1, low=-0.2, high=0.2))
    grey = uniform(count, 2, 1, low=0.74, high=0.95)
    return Clips(
        labels=labels,
        centre=centre,
        radius=radius,
        angle=angle,
        rgb=(RGB[labels[:, 1]] + uniform(count, 3, low=-0.03, high=0.03)).clamp(0, 1),
        ground=(grey + uniform(count, 2, 3, low=-0.05, high=0.05)).clamp(0, 1),
        ground_angle=uniform(count, low=0.0, high=2 * math.pi),
    )


def render(clips: Clips) -> Tensor:
    """Draw the clips: (B, 3, F, 64, 64) float32 in [0, 1]."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = clips.ground_angle.cos()[:, None, None], clips.ground_angle.sin()[:, None, None]
    slope = ((cos * x + sin * y) / SIDE + 0.5).clamp(0, 1)[:, None]
    ground = torch.lerp(clips.ground[:, 0, :, None, None], clips.ground[:, 1, :, None, None], slope)
    video = ground[:, :, None].repeat(1, 1, clips.radius.shape[1], 1, 1)
    cos, sin = clips.angle.cos()[..., None, None], clips.angle.sin()[..., None, None]
    dx, dy = (x - clips.centre[..., 0, None, None]), (y - clips.centre[..., 1, None, None])
    radius = clips.radius[..., None, None]
    u, v = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius
    for index, distance in enumerate(DISTANCES.values()):
        rows = (clips.labels[:, 0] == index).nonzero()[:, 0]
        if len(rows):
            cover = (0.5 - radius[rows] * distance(u[rows], v[rows])).clamp(0, 1)[:, None]
            video[rows] = torch.lerp(video[rows], clips.rgb[rows, :, None, None, None], cover)
    return video


def caption(labels: Sequence[int], opening: str = "") -> str:
    """A clip in words. labels: 3 integers as in `ATTRIBUTES`."""
    shape, colour, motion = labels
    thing = f"{with_article(COLOURS[colour])} {SHAPES[shape]}"
    return f"{opening}{thing} that {MOTIONS[motion]}" if opening else f"{thing} {MOTIONS[motion]}"


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
    article, colour, shape, motion = [*text.split(" ", 3), "", "", "", ""][:4]
    if article not in ("a", "an") or colour not in COLOURS or shape not in SHAPES or motion not in MOTIONS:
        return None
    return [SHAPES.index(shape), COLOURS.index(colour), MOTIONS.index(motion)]


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
    one = {name: getattr(clips, name)[rows, at][:, None] for name in ("centre", "radius", "angle")}
    return to_uint8(render(replace(clips, **one)))[:, :, 0], labels
