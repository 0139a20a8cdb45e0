"""The one way in which picture files are read: upright, in sRGB, 8 bits a channel, on white where they are transparent.

What Pillow opens is read right or refused: pictures of floats or of 32-bit integers have no agreed white, and an
animation or several pages are more than one picture. Of a multi-picture JPEG (MPO: a preview, a gain map) the first is
the picture. A colour profile other than sRGB is converted; pictures without one are taken as sRGB, as browsers do.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageFile, ImageOps

from selfnpo_core.errors import InputError
from selfnpo_core.system.foreign import foreign_kind

log = logging.getLogger(__name__)
_REVISION = 1
"""Raised when the same file would give other pixels."""
_KINDS = frozenset(
    {"AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "SUN"}
    | {"TGA", "TIFF", "WEBP", "XBM", "XPM"}
)
"""What Pillow calls the formats that are read. For some of the others it starts a program."""
SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in _KINDS)
"""Of files that may be pictures, in lower case."""
MOVING = frozenset({".gif", ".webp", ".png", ".apng", ".avif", ".avifs"})
"""Of files that may be animations."""
FORMATS = tuple(sorted(_KINDS & Image.OPEN.keys()))  # MPO is opened as JPEG
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF 6.0."""
_KEY_SCALES = {"L;2": 85, "L;4": 17}
"""Greys of fewer bits are spread to 0 … 255; the one that stands for transparency is not."""


def reader() -> str:
    """What the pixels of a picture file depend on beside the file."""
    return f"Pillow {PIL.__version__}, loader {_REVISION}"


def read_picture(path: str | Path) -> Image.Image:
    """A picture file in RGB. Raises `InputError` for what is no whole still picture, or is not understood."""
    if not Path(path).is_file():
        raise InputError(f"{path} {'is a folder' if Path(path).is_dir() else 'does not exist'}: give a picture file")
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if getattr(picture, "is_animated", False) and picture.format != "MPO":
                raise InputError(f"{path} holds {picture.n_frames} frames or pages: give a still picture")
            _load(picture)
            ImageOps.exif_transpose(picture, in_place=True)
            return flattened(picture, str(path))
    except InputError:
        raise
    except Exception as error:  # Pillow raises several kinds
        if what := foreign_kind(Path(path)):
            raise InputError(f"{path} {what}") from None
        detail = " ".join(str(error).replace(str(path), "").split())[:100]
        raise InputError(f"{path} cannot be read as a picture ({type(error).__name__}: {detail})") from None


def is_moving(path: Path) -> bool:
    """Whether a file is an animation. A damaged one counts as one where its suffix is an animation's."""
    if path.suffix.lower() not in MOVING:
        return False
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return bool(getattr(picture, "is_animated", False))
    except Exception:  # Pillow raises several kinds
        return path.suffix.lower() in (".gif", ".webp", ".apng", ".avifs")


def flattened(picture: Image.Image, name: str) -> Image.Image:
    """A picture, or a frame of one, in RGB on white. Raises `InputError` for modes that have no rule."""
    if picture.mode in ("F", "La"):
        raise _unknown(picture, name)
    plain = _on_white(_from_16_bits(picture, name) if picture.mode in _DEEP else picture)
    profile = picture.info.get("icc_profile")
    return _in_srgb(picture, plain, profile, name) if profile else plain


def natural(name: str) -> tuple[object, ...]:
    """Sorts names by the numbers in them: 2 before 10."""
    parts = re.split(r"([0-9]+)", name)
    return (*((int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)), name)


def frame_files(folder: Path) -> list[Path]:
    """The still pictures in a folder, in the order of the numbers in their names: a clip's frames.

    Raises `InputError` for two files of one frame.
    """
    files = sorted(
        (file for file in _visible(folder) if file.suffix.lower() in SUFFIXES and not is_moving(file)),
        key=lambda file: natural(file.name),
    )
    for one, other in pairwise(files):
        if one.stem == other.stem:
            raise InputError(f"{folder} holds a frame twice ({one.name}, {other.name}): leave one of them there")
    return files


def holds_frames(folder: Path) -> bool:
    return any(file.suffix.lower() in SUFFIXES and not is_moving(file) for file in _visible(folder))


def _visible(folder: Path) -> Iterable[Path]:
    return (file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())


def _load(picture: ImageFile.ImageFile) -> None:
    """Read the pixels, and put the transparent colour into the range that Pillow puts them into."""
    raw = picture.tile[0].args if picture.tile else None  # of PNG the raw mode; loading forgets it
    picture.load()
    key = picture.info.get("transparency")
    if isinstance(key, int) and isinstance(raw, str) and raw in _KEY_SCALES:
        picture.info["transparency"] = key * _KEY_SCALES[raw]
    if isinstance(key, tuple) and max(key) > 255:
        raise ValueError("a transparent colour of 16 bits, of which Pillow reads 8")


def _from_16_bits(picture: Image.Image, name: str) -> Image.Image:
    """Grey of 9 to 16 bits, rounded to 8; LA where one grey stands for transparency."""
    tags = getattr(picture, "tag_v2", {})
    if picture.format not in (("PNG", "PPM") if picture.mode == "I" else ("PNG", "PPM", "JPEG2000", "TIFF")):
        raise _unknown(picture, name)
    most = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    values = np.asarray(picture).astype(np.float64)
    grey = np.rint(values.clip(0, most) * (255 / most)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    key = picture.info.get("transparency")
    if key is None:
        return Image.fromarray(grey)
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))])


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent is laid on white, so that colours that nobody sees stay hidden."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    clear = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


def _in_srgb(picture: Image.Image, plain: Image.Image, profile: bytes, name: str) -> Image.Image:
    """`plain`, which was made of `picture`, by the picture's colour profile."""
    grey = picture.mode in ("1", "L", "LA", *_DEEP)
    kind, source = ("GRAY", plain.getchannel(0)) if grey else ("RGB", plain)
    if picture.mode == "CMYK":
        kind, source = "CMYK", picture
    try:
        told = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(told).lower():
            return plain
        if told.profile.xcolor_space.strip() != kind:
            raise ValueError(f"it is of {told.profile.xcolor_space.strip()}")
        made = ImageCms.profileToProfile(source, told, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning(
            "%s has a colour profile that cannot be used (%s): taken as sRGB", name, " ".join(str(error).split())
        )
        return plain
    assert made is not None
    return made


def _unknown(picture: Image.Image, name: str) -> InputError:
    of = f"{picture.format} in " if picture.format else ""
    return InputError(f"{name} is {of}Pillow's mode {picture.mode}, which has no agreed white: store it in 8 bits")
