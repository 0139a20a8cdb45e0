"""What a sample is: how its file is read, shown and damaged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

COARSE, NOISE = 12, 0.12
Frames = np.ndarray
"""A sample's pixels (F, H, W, 3) uint8; a picture is one frame."""


@dataclass(frozen=True, kw_only=True)
class Medium:
    """One kind of sample, as it is read."""

    unit: str
    """What a sample is called: picture, clip."""
    suffixes: frozenset[str]
    """Of files that can be read, in lower case; "" is a folder of pictures, a frame each."""
    read: Callable[[Path], Frames]
    """Raises `InputError` for what cannot be read whole."""
    is_one: Callable[[Path], bool] = lambda path: True
    """Whether a file of such a suffix is a sample: a still .webp is a picture, but no clip."""
    reader: Callable[[], str] = lambda: ""
    """The libraries that `read` goes by, and their versions: others may give other pixels."""


@dataclass(frozen=True, kw_only=True)
class ShownMedium(Medium):
    """One kind of sample that a page in a browser can show."""

    suffix: str
    """Of the files that can be shown."""
    content_type: str
    size: Callable[[Path], tuple[int, int]]
    """Width and height of a file that was read to its end. Raises `InputError` for one that cannot be."""
    plain: Callable[[Path, Path], None]
    """Copy a file to another without anything that is not seen, such as text that programs write into pictures."""
    damage: Callable[[Path, Path], None]
    """Copy a file to another so that everybody sees that it is worse: by `damaged`."""


def damaged(frames: np.ndarray) -> np.ndarray:
    """(F, H, W, 3) uint8 as if through a misted pane: a grid of COARSE cells a side, smoothed, and noise.

    The same for the same frames. Heights and widths stay.
    """
    generator = torch.Generator().manual_seed(0)
    clear = torch.tensor(frames).permute(0, 3, 1, 2).float() / 255
    cells = [max(2, min(COARSE, side // 4)) for side in clear.shape[2:]]
    mist = interpolate(interpolate(clear, cells, mode="area"), clear.shape[2:], mode="bicubic")
    noise = NOISE * torch.randn(mist.shape, generator=generator)
    bytes_ = ((mist + noise).clamp(0, 1) * 255).round().byte()
    return bytes_.permute(0, 2, 3, 1).numpy()
