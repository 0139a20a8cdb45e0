"""Pictures: read, shown without what else a PNG may hold, damaged for attention checks."""

from pathlib import Path

import numpy as np
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.medium import Frames, ShownMedium, damaged

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


def read_picture(path: Path) -> Frames:
    """(1, H, W, 3) uint8."""
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))[None]
    except Exception as error:  # PIL raises several kinds
        detail = " ".join(str(error).split())[:100]
        raise InputError(f"{path} cannot be read as a picture ({type(error).__name__}: {detail})") from None


def _size(path: Path) -> tuple[int, int]:
    try:
        return _open(path).size
    except Exception as error:  # PIL raises several kinds
        raise InputError(f"{path} is no whole picture ({type(error).__name__}): draw it again") from None


def _plain(source: Path, target: Path) -> None:
    Image.fromarray(np.asarray(_open(source))).save(target)


def _damage(source: Path, target: Path) -> None:
    Image.fromarray(damaged(np.asarray(_open(source))[None])[0]).save(target)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


PICTURES = ShownMedium(
    unit="picture",
    suffixes=SUFFIXES,
    read=read_picture,
    suffix="png",
    content_type="image/png",
    size=_size,
    plain=_plain,
    damage=_damage,
)
