"""The first frame of image to video: a picture brought to a clip's size without being stretched in silence.

crop      as large as covers the frame; what stands over is cut off evenly on both sides
pad       as large as fits into the frame, black beside it
stretch   each side by itself, as the stock pipeline does with whatever it is given
"""

import logging
from dataclasses import replace

from PIL import Image, ImageOps

from selfnpo_video.shapes import ClipSize, Compression

log = logging.getLogger(__name__)
FITS = ("crop", "pad", "stretch")
_LITTLE = 0.01
"""Share of a picture that may be lost, or of a frame that may stay black, without a word."""


def fitted(picture: Image.Image, size: ClipSize, fit: str) -> Image.Image:
    """The picture, of the clip's height and width. fit: of `FITS`."""
    to, filter_ = (size.width, size.height), Image.Resampling.LANCZOS
    if fit == "crop":
        return ImageOps.fit(picture, to, filter_)
    if fit == "pad":
        return ImageOps.pad(picture, to, filter_, color="black")
    return picture.resize(to, filter_)


def say_what_is_lost(picture: Image.Image, size: ClipSize, fit: str) -> None:
    """In a line, how a picture of another shape than the clip's is brought to it."""
    ratio = picture.width * size.height / (picture.height * size.width)
    lost = 1 - min(ratio, 1 / ratio)
    if lost <= _LITTLE:
        return
    what = {
        "crop": f"{lost:.0%} of it is cut off",
        "pad": f"{lost:.0%} of each frame is black beside it",
        "stretch": f"it is stretched by {1 / (1 - lost) - 1:.0%}",
    }
    others = ", ".join(other for other in FITS if other != fit)
    shape = f"{picture.width}×{picture.height} pixels, the clip {size.width}×{size.height}"
    log.warning("the first frame has %s: %s (--fit %s; also %s)", shape, what[fit], fit, others)


def size_from(
    picture: Image.Image, own: ClipSize, compression: Compression, given: tuple[int | None, int | None]
) -> ClipSize:
    """Size of a clip that begins with this picture, where a model takes many sizes; its own where it takes one.

    As CogVideoX-1.5 draws from pictures: the shorter side is that of the model's own size, the longer one follows the
    picture up to the longer one of the own size, in whole patches. given: (height, width) as they were asked for.
    """
    height, width = given
    if compression.fixed is not None or compression.patch_time == 1:
        return replace(own, height=height or own.height, width=width or own.width)
    ratio, step = picture.width / picture.height, compression.space * compression.patch
    least, most = sorted((own.height, own.width))
    if height is None and width is None:
        longer = min(most, max(least, step * round(least * max(ratio, 1 / ratio) / step)))
        height, width = (least, longer) if ratio >= 1 else (longer, least)
    elif height is None:
        assert width is not None
        height = max(step, step * round(width / ratio / step))
    else:
        width = max(step, step * round(height * ratio / step))
    return replace(own, height=height, width=width)
