"""Clips beside each other for people to look at: pairs, grids, and a page that plays them."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont

from selfnpo_core.sampling.side_by_side import pair
from selfnpo_core.system.files import file_aside

INDEX = "index.html"
_HEAD, _GAP = 18, 4


def beside(left: np.ndarray, right: np.ndarray, titles: Sequence[str], caption: str) -> Iterator[np.ndarray]:
    """Frames of both clips (F, H, W, 3) beside each other; sides are even numbers, as H.264 wants them.

    The shorter one stays at its last frame: a clip in which nothing moves may come back from a file as one frame.
    """
    for frame in range(max(len(left), len(right))):
        one, other = left[min(frame, len(left) - 1)], right[min(frame, len(right) - 1)]
        picture = pair(Image.fromarray(one), Image.fromarray(other), titles, caption)
        width, height = (side + side % 2 for side in picture.size)
        sheet = Image.new("RGB", (width, height), "white")
        sheet.paste(picture)
        yield np.asarray(sheet)


def grid(clips: Sequence[np.ndarray], titles: Sequence[str], columns: int, caption: str) -> Iterator[np.ndarray]:
    """Frames of clips (F, H, W, 3) in rows of `columns`, titles above and the caption below; even sides for H.264."""
    _, height, width, _ = clips[0].shape
    rows = -(-len(clips) // columns)
    total = columns * (width + _GAP)
    words = textwrap.wrap(caption, max(12, total // 6)) or [""]
    size = total, rows * (height + _HEAD) + 14 * len(words) + _GAP
    sheet = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    places = [(k % columns * (width + _GAP), k // columns * (height + _HEAD)) for k in range(len(clips))]
    for (x, y), title in zip(places, titles, strict=True):
        pen.text((x, y + 2), title, fill="black", font=font)
    pen.multiline_text((0, rows * (height + _HEAD) + 2), "\n".join(words), fill="black", font=font, spacing=2)
    for frame in range(min(len(clip) for clip in clips)):
        for clip, (x, y) in zip(clips, places, strict=True):
            sheet.paste(Image.fromarray(clip[frame]), (x, y + _HEAD))
        yield np.asarray(sheet).copy()


def write_sheet(output: Path, sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> None:
    """OUTPUT/index.html, which plays offline. sections: heading, and what is below it as (file in OUTPUT, words)."""
    pages = Environment(
        loader=PackageLoader("selfnpo_video", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    with file_aside(output / INDEX) as aside:
        aside.write_text(pages.get_template("sheet.html").render(sections=sections), encoding="utf-8")
