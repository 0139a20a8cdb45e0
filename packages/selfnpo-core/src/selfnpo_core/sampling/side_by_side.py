"""Two pictures beside each other, a title over each and a caption below."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SMALLEST = 192
"""Pictures narrower than this are enlarged."""
GAP, _LINE = 4, 14


def pair(left: Image.Image, right: Image.Image, titles: Sequence[str], caption: str) -> Image.Image:
    """Two pictures beside each other, a title over each and the caption below. Small pictures are enlarged."""
    left, right = _enlarged(left), _enlarged(right)
    width = left.width + GAP + right.width
    words = textwrap.wrap(caption, max(12, width // 6)) or [""]
    top = _LINE * max(len(_wrapped(title, left.width)) for title in titles)
    canvas = Image.new("RGB", (width, top + left.height + _LINE * len(words) + GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for x, picture, title in zip((0, left.width + GAP), (left, right), titles, strict=True):
        pen.multiline_text((x, 0), "\n".join(_wrapped(title, left.width)), fill="black", font=font, spacing=2)
        canvas.paste(picture, (x, top))
    pen.multiline_text((0, top + left.height + 2), "\n".join(words), fill="black", font=font, spacing=2)
    return canvas


def _enlarged(picture: Image.Image) -> Image.Image:
    """By a whole number, so that every pixel stays what it was."""
    zoom = max(1, SMALLEST // picture.width)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(8, width // 6))
