"""Pictures in a blind study: read, shown without what else a PNG may hold, damaged for attention checks."""

from pathlib import Path

import numpy as np
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.medium import Medium, damaged


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


PICTURES = Medium(
    package="selfnpo-image",
    word="picture",
    suffix="png",
    content_type="image/png",
    size=_size,
    plain=_plain,
    damage=_damage,
)
