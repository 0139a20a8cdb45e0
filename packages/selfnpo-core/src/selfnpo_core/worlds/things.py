"""Real pictures of things: what the demo worlds paste onto their grounds.

The pictures are those of Noto Color Emoji, scaled to 64×64 and kept with their licence in `noto/`;
`tools/build_demo_models.py things` makes them from the font.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CODES = {
    "cat": 0x1F408, "dog": 0x1F415, "horse": 0x1F40E, "cow": 0x1F404, "pig": 0x1F416, "rabbit": 0x1F407,
    "mouse": 0x1F401, "elephant": 0x1F418, "camel": 0x1F42A, "tiger": 0x1F405, "monkey": 0x1F412, "snake": 0x1F40D,
    "turtle": 0x1F422, "fish": 0x1F41F, "whale": 0x1F40B, "dolphin": 0x1F42C, "octopus": 0x1F419, "crab": 0x1F980,
    "snail": 0x1F40C, "butterfly": 0x1F98B, "bee": 0x1F41D, "ladybird": 0x1F41E, "owl": 0x1F989, "duck": 0x1F986,
    "penguin": 0x1F427, "rooster": 0x1F413, "frog": 0x1F438, "apple": 0x1F34E, "pear": 0x1F350, "banana": 0x1F34C,
    "tangerine": 0x1F34A, "lemon": 0x1F34B, "strawberry": 0x1F353, "grapes": 0x1F347, "watermelon": 0x1F349,
    "cherries": 0x1F352, "pineapple": 0x1F34D, "carrot": 0x1F955, "corn": 0x1F33D, "mushroom": 0x1F344,
    "bread": 0x1F35E, "cheese": 0x1F9C0, "pizza": 0x1F355, "burger": 0x1F354, "cake": 0x1F382, "doughnut": 0x1F369,
    "egg": 0x1F95A, "tulip": 0x1F337, "rose": 0x1F339, "sunflower": 0x1F33B, "cactus": 0x1F335, "palm": 0x1F334,
    "tree": 0x1F333, "clover": 0x1F340, "car": 0x1F697, "bus": 0x1F68C, "tractor": 0x1F69C, "bicycle": 0x1F6B2,
    "locomotive": 0x1F682, "aeroplane": 0x2708, "helicopter": 0x1F681, "rocket": 0x1F680, "sailboat": 0x26F5,
    "ship": 0x1F6A2, "ambulance": 0x1F691, "lorry": 0x1F69A, "house": 0x1F3E0, "castle": 0x1F3F0, "tent": 0x26FA,
    "umbrella": 0x2614, "hat": 0x1F3A9, "crown": 0x1F451, "shoe": 0x1F45F, "glasses": 0x1F453, "key": 0x1F511,
    "hammer": 0x1F528, "bell": 0x1F514, "book": 0x1F4D5, "bulb": 0x1F4A1, "clock": 0x23F0, "telephone": 0x260E,
    "camera": 0x1F4F7, "guitar": 0x1F3B8, "drum": 0x1F941, "trumpet": 0x1F3BA, "violin": 0x1F3BB, "football": 0x26BD,
    "balloon": 0x1F388, "gift": 0x1F381, "scissors": 0x2702, "anchor": 0x2693, "sun": 0x1F31E, "moon": 0x1F319,
    "star": 0x2B50, "cloud": 0x2601, "snowman": 0x26C4,
}  # fmt: skip
"""Name → code point, in the order of the tiles."""
THINGS = tuple(CODES)
TILE, COLUMNS = 64, 12
ATLAS = Path(__file__).with_name("noto") / "things.png"

GROUNDS = ("white", "grey", "blue", "green", "yellow", "pink")
_TONES = torch.tensor(
    [
        [0.96, 0.96, 0.96],
        [0.62, 0.62, 0.64],
        [0.55, 0.72, 0.92],
        [0.60, 0.82, 0.58],
        [0.95, 0.87, 0.52],
        [0.95, 0.70, 0.78],
    ]
)


def with_article(word: str) -> str:
    """A word with its article, such as "an owl"."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def to_uint8(pixels: Tensor) -> Tensor:
    """[0, 1] floats to bytes, rounded as `VaeImageProcessor.numpy_to_pil` does."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


@cache
def tiles() -> tuple[Tensor, Tensor]:
    """Pictures with coverage last, colours premultiplied by it: (96, 4, 64, 64) in [0, 1], and the same at 32×32."""
    sheet = np.asarray(Image.open(ATLAS).convert("RGBA"))
    rows = sheet.reshape(-1, TILE, COLUMNS, TILE, 4).swapaxes(1, 2).reshape(-1, TILE, TILE, 4)
    picture = torch.from_numpy(np.ascontiguousarray(rows[: len(THINGS)])).permute(0, 3, 1, 2).float() / 255
    picture[:, :3] *= picture[:, 3:]
    return picture, F.avg_pool2d(picture, 2)


def grounds(which: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Softly shaded grounds (B, 3, side, side). which: (B,) indices of `GROUNDS`."""
    count = len(which)
    tint = 0.06 * torch.rand(count, 2, 3, generator=generator) - 0.03
    first, second = (_TONES[which][:, None] + tint).clamp(0, 1)[..., None, None].unbind(dim=1)
    angle = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    axis = (torch.arange(side) - (side - 1) / 2) / side
    slope = angle.cos() * axis + angle.sin() * axis[:, None] + 0.5
    return torch.lerp(first, second, slope.clamp(0, 1)[:, None])


def paste(canvas: Tensor, which: Tensor, *, centre: Tensor, extent: Tensor, angle: Tensor, mirrored: Tensor) -> Tensor:
    """Things laid over canvas (B, 3, H, W) in [0, 1].

    which: (B,) indices of `THINGS`; centre: (B, 2) pixels from the middle, x then y (down); extent: (B,) the tile's
    side in pixels; angle: (B,) radians; mirrored: (B,) bool, left for right.
    """
    height, width = canvas.shape[-2:]
    x = torch.arange(width) - (width - 1) / 2
    y = torch.arange(height) - (height - 1) / 2
    dx = (x - centre[:, 0, None])[:, None, :]
    dy = (y - centre[:, 1, None])[:, :, None]
    cos, sin, half = angle.cos()[:, None, None], angle.sin()[:, None, None], extent[:, None, None] / 2
    u, v = (cos * dx + sin * dy) / half, (cos * dy - sin * dx) / half
    grid = torch.stack([torch.where(mirrored[:, None, None], -u, u), v], dim=-1)
    laid = canvas.clone()
    full, small = tiles()
    near = extent < 0.55 * TILE
    for rows, source in ((~near, full), (near, small)):
        at = rows.nonzero()[:, 0]
        if len(at):
            seen = F.grid_sample(source[which[at]], grid[at], align_corners=False)
            laid[at] = seen[:, :3] + (1 - seen[:, 3:]) * canvas[at]
    return laid
