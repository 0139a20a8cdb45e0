"""Pictures: read, shown without what else a PNG may hold, damaged for attention checks."""

from pathlib import Path

import numpy as np
from PIL import Image

from selfnpo_core.sampling.medium import Frames, ShownMedium, damaged
from selfnpo_core.system.pictures import SUFFIXES, read_picture, reader


def _frames(path: Path) -> Frames:
    """(1, H, W, 3) uint8."""
    return np.array(read_picture(path))[None]


def _size(path: Path) -> tuple[int, int]:
    return read_picture(path).size


def _plain(source: Path, target: Path) -> None:
    Image.fromarray(np.asarray(read_picture(source))).save(target)


def _damage(source: Path, target: Path) -> None:
    Image.fromarray(damaged(_frames(source))[0]).save(target)


PICTURES = ShownMedium(
    unit="picture",
    suffixes=SUFFIXES,
    read=_frames,
    reader=reader,
    suffix="png",
    content_type="image/png",
    size=_size,
    plain=_plain,
    damage=_damage,
)
