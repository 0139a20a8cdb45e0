"""The demo world: captioned 64×64 pictures drawn by code, so that real data is unlimited.

A scene holds one object (shape, colour, size, place) or two (shape and colour each, one left of or above the other)
on a softly shaded background. The shapes are those of `selfnpo_core.worlds.shapes`.

Everything random comes from a `torch.Generator`; the same generator state draws the same pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfnpo_core.worlds.shapes import COLOURS, DISTANCES, RGB, SHAPES, to_uint8, with_article

SIDE = 64
SIZES = ("small", "large")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
LAYOUTS = ("one", "beside", "above")  # first object left of the second; first object above the second
OPENINGS = ("", "there is ", "a picture of ")

#: The attributes of a scene, in the order of the columns of `Scenes.labels`; −1 marks one that a layout lacks.
ATTRIBUTES = {
    "layout": LAYOUTS,
    "place": PLACES,
    "size": SIZES,
    "shape": SHAPES,
    "colour": COLOURS,
    "second shape": SHAPES,
    "second colour": COLOURS,
}

_PLACE_CENTRES = torch.tensor([[-0.45, 0.0], [0.45, 0.0], [0.0, -0.45], [0.0, 0.45], [0.0, 0.0]])
_SIZE_RADII = torch.tensor([7.5, 13.5])


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """A batch of scenes.

    labels: (B, 7) int64, columns as in `ATTRIBUTES`, −1 where an attribute does not apply.
    centre: (B, 2, 2) pixels from the picture's middle, x then y (down); radius, angle: (B, 2); rgb: (B, 2, 3).
    ground: (B, 2, 3) the two tones of the background; ground_angle: (B,) radians.
    """

    labels: Tensor
    centre: Tensor
    radius: Tensor
    angle: Tensor
    rgb: Tensor
    ground: Tensor
    ground_angle: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def draw_labels(count: int, generator: torch.Generator, two_objects: float = 0.3) -> Tensor:
    """Random attributes: (count, 7) int64. `two_objects` is the share of scenes with two objects."""

    def pick(n: int) -> Tensor:
        return torch.randint(n, (count,), generator=generator)

    two = torch.rand(count, generator=generator) < two_objects
    layout = torch.where(two, 1 + pick(2), torch.zeros(count, dtype=torch.int64))
    labels = torch.stack(
        [
            layout,
            pick(5),
            pick(2),
            pick(len(SHAPES)),
            pick(len(COLOURS)),
            pick(len(SHAPES)),
            pick(len(COLOURS)),
        ],
        dim=1,
    )
    labels[two, 1:3] = -1
    labels[~two, 5:7] = -1
    return labels


def draw_scenes(labels: Tensor, generator: torch.Generator) -> Scenes:
    """Fill in what the caption leaves open: exact centres, radii, angles, tints and background. labels: (B, 7)."""
    count = len(labels)

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    layout = labels[:, 0]
    one = layout == 0
    jitter = uniform(count, 2, 2, low=-2.5, high=2.5)
    apart = uniform(count, low=14.0, high=17.0)
    axis = torch.stack([(layout == 1).float(), (layout == 2).float()], dim=1)
    pair = torch.stack([-apart[:, None] * axis, apart[:, None] * axis], dim=1)
    single = (_PLACE_CENTRES[labels[:, 1].clamp(min=0)] * (SIDE / 2))[:, None].expand(-1, 2, -1)
    centre = torch.where(one[:, None, None], single, pair) + jitter
    scale = uniform(count, 2, low=0.9, high=1.1)
    radius = torch.where(one[:, None], _SIZE_RADII[labels[:, 2].clamp(min=0)][:, None], torch.tensor(10.5)) * scale
    tint = RGB[labels[:, [4, 6]].clamp(min=0)] + uniform(count, 2, 3, low=-0.03, high=0.03)
    grey = uniform(count, 2, 1, low=0.74, high=0.95)
    return Scenes(
        labels=labels,
        centre=centre,
        radius=radius,
        angle=uniform(count, 2, low=-0.2, high=0.2),
        rgb=tint.clamp(0, 1),
        ground=(grey + uniform(count, 2, 3, low=-0.05, high=0.05)).clamp(0, 1),
        ground_angle=uniform(count, low=0.0, high=2 * math.pi),
    )


def render(scenes: Scenes) -> Tensor:
    """Draw the scenes: (B, 3, 64, 64) float32 in [0, 1]."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    direction = torch.stack([scenes.ground_angle.cos(), scenes.ground_angle.sin()], dim=1)
    slope = (direction[:, 0, None, None] * x + direction[:, 1, None, None] * y) / SIDE + 0.5
    first, second = scenes.ground[:, 0, :, None, None], scenes.ground[:, 1, :, None, None]
    picture = torch.lerp(first, second, slope.clamp(0, 1)[:, None])
    for k, column in enumerate((3, 5)):
        shape = scenes.labels[:, column]
        for s, distance in enumerate(DISTANCES.values()):
            rows = (shape == s).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            c, r = scenes.centre[rows, k], scenes.radius[rows, k, None, None]
            cos, sin = scenes.angle[rows, k].cos()[:, None, None], scenes.angle[rows, k].sin()[:, None, None]
            dx, dy = x - c[:, 0, None, None], y - c[:, 1, None, None]
            u, v = (cos * dx + sin * dy) / r, (cos * dy - sin * dx) / r
            cover = (0.5 - r * distance(u, v)).clamp(0, 1)[:, None]
            picture[rows] = torch.lerp(picture[rows], scenes.rgb[rows, k, :, None, None], cover)
    return picture


def caption(labels: Sequence[int], opening: str = "", swap: bool = False) -> str:
    """One scene in words. labels: 7 integers as in `ATTRIBUTES`; `swap` names the second object first."""
    layout, place, size, shape, colour, shape2, colour2 = labels
    if layout == 0:
        return f"{opening}a {SIZES[size]} {COLOURS[colour]} {SHAPES[shape]} {PLACES[place]}"
    one, two = f"{with_article(colour)} {SHAPES[shape]}", f"{with_article(colour2)} {SHAPES[shape2]}"
    if swap:
        return f"{opening}{two} {('to the right of', 'below')[layout - 1]} {one}"
    return f"{opening}{one} {('to the left of', 'above')[layout - 1]} {two}"


def draw_captions(labels: Tensor, generator: torch.Generator) -> list[str]:
    """A caption for each row of labels (B, 7), with a random opening and order of naming."""
    opening = torch.randint(len(OPENINGS), (len(labels),), generator=generator).tolist()
    swap = (torch.rand(len(labels), generator=generator) < 0.5).tolist()
    return [caption(row, OPENINGS[o], s) for row, o, s in zip(labels.tolist(), opening, swap, strict=True)]


def training_captions(count: int = 1000, seed: int = 11) -> list[str]:
    """The captions that negative weights are trained with; no picture is drawn."""
    generator = torch.Generator().manual_seed(seed)
    return draw_captions(draw_labels(count, generator), generator)


def parse_caption(text: str) -> list[int] | None:
    """The labels that a caption of this world names, or None for any other sentence."""
    text = " ".join(text.lower().strip().rstrip(".").split())
    for opening in sorted(OPENINGS, key=len, reverse=True):
        if opening and text.startswith(opening):
            text = text[len(opening) :]
            break
    for words, layout, swap in (
        (" to the left of ", 1, False),
        (" to the right of ", 1, True),
        (" above ", 2, False),
        (" below ", 2, True),
    ):
        if words in text:
            first, second = (_parse_object(part) for part in text.split(words, 1))
            if first is None or second is None:
                return None
            return [layout, -1, -1, *second, *first] if swap else [layout, -1, -1, *first, *second]
    for place, words in enumerate(PLACES):
        if text.endswith(" " + words):
            head = text[: -len(words) - 1].split(" ", 2)
            if len(head) == 3 and head[0] in ("a", "an") and head[1] in SIZES:
                thing = _parse_object("a " + head[2])
                return thing and [0, place, SIZES.index(head[1]), *thing, -1, -1]
    return None


def _parse_object(text: str) -> list[int] | None:
    words = text.split()
    if len(words) == 3 and words[0] in ("a", "an") and words[1] in COLOURS and words[2] in SHAPES:
        return [SHAPES.index(words[2]), COLOURS.index(words[1])]
    return None


def draw_world(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Real data: pictures (count, 3, 64, 64) uint8 and their labels (count, 7)."""
    labels = draw_labels(count, generator)
    chunks = [to_uint8(render(draw_scenes(part, generator))) for part in labels.split(1024)]
    return torch.cat(chunks), labels
