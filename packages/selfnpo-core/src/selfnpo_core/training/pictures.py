"""Sample grids of a run: a row a prompt; a pair of columns a guidance scale, without and with the negative weights."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

HEADER = 14


def strip(frames: np.ndarray, most: int = 5) -> Image.Image:
    """Up to `most` frames of (F, H, W, 3), evenly spaced, side by side."""
    chosen = np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)
    return Image.fromarray(np.concatenate(list(frames[chosen]), axis=1))


def moving_grid(columns: Sequence[tuple[str, Sequence[np.ndarray]]]) -> list[Image.Image]:
    """As `sample_grid`, of clips (F, H, W, 3) uint8 of equally many frames: a grid a frame."""
    count = min(len(clip) for _, clips in columns for clip in clips)
    return [
        sample_grid([(title, [Image.fromarray(clip[frame]) for clip in clips]) for title, clips in columns])
        for frame in range(count)
    ]


def sample_grid(columns: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Columns of equally many pictures under their titles."""
    cells = [picture.convert("RGB") for _, pictures in columns for picture in pictures]
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    rows = max(len(pictures) for _, pictures in columns)
    grid = Image.new("RGB", (width * len(columns), HEADER + height * rows), "white")
    pen = ImageDraw.Draw(grid)
    for x, (title, pictures) in enumerate(columns):
        pen.text((x * width + 2, 1), title, fill="black")
        for y, picture in enumerate(pictures):
            grid.paste(picture.convert("RGB"), (x * width, HEADER + y * height))
    return grid
