"""Samples and plots inside of a page: re-encoded, so that they are small and carry nothing but pixels."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.medium import Frames, Medium
from selfnpo_core.system.extras import pyplot
from selfnpo_core.system.pictures import read_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EDGE, CLIP_EDGE, GRID_EDGE = 384, 256, 1600
"""Pixels of the longer side, at most: of a picture, of a clip, of a training run's sample grid."""
FRAMES = 24
"""Of a clip, at most."""
PIXELATED = 96
"""Sides up to this are enlarged by the browser with every pixel as it is."""
POINTS = 600
"""Of a curve, at most."""
_LINE = "#5b8fd6"
_INK = "#010203"
"""Stands for the page's own colour of text in a plot."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture or a looping clip as a data URI, or why there is none."""

    uri: str | None
    width: int = 0
    height: int = 0
    problem: str | None = None

    @property
    def is_small(self) -> bool:
        return max(self.width, self.height) <= PIXELATED


def shown(path: Path, medium: Medium, fps: float | None = None) -> Shown:
    """A sample as webp, which browsers loop by themselves if it moves. fps: of clips; 8 if it is not known."""
    try:
        frames = medium.read(path)
    except InputError as error:
        return Shown(uri=None, problem=" ".join(str(error).split()))
    duration = 1000 * len(frames) / (fps or 8)
    kept = frames[_spread(len(frames), FRAMES)]
    pictures = _bounded(kept, EDGE if len(kept) == 1 else CLIP_EDGE)
    return _webp(pictures, round(duration / len(kept)))


def shown_grid(path: Path) -> Shown:
    """A sample grid of a training run."""
    try:
        pictures = _bounded(np.asarray(read_picture(path))[None], GRID_EDGE)
    except InputError as error:
        return Shown(uri=None, problem=str(error))
    return _webp(pictures, 0)


def some(items: Sequence[Path], most: int) -> list[Path]:
    """At most so many items, evenly spread, the first and the last among them."""
    return [items[i] for i in _spread(len(items), most)]


def _spread(count: int, most: int) -> list[int]:
    return [int(i) for i in np.linspace(0, count - 1, min(count, most)).round()]


def _bounded(frames: Frames, edge: int) -> list[Image.Image]:
    pictures = [Image.fromarray(frame) for frame in frames]
    for picture in pictures:
        picture.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return pictures


def _webp(pictures: Sequence[Image.Image], duration: int) -> Shown:
    """Small pictures without loss: a block of compression would be as large as what they show."""
    file, first = io.BytesIO(), pictures[0]
    if len(pictures) > 1:
        first.save(
            file, "webp", save_all=True, append_images=pictures[1:], duration=duration, loop=0, quality=85, method=4
        )
    elif max(first.size) <= PIXELATED:
        first.save(file, "webp", lossless=True)
    else:
        first.save(file, "webp", quality=82, method=4)
    data = base64.b64encode(file.getvalue()).decode()
    return Shown(uri=f"data:image/webp;base64,{data}", width=first.width, height=first.height)


def inline_svg(figure: Figure, name: str) -> str:
    """A plot as an <svg> element in the page's colours. name: of letters; no two plots of a page share one."""
    file = io.StringIO()
    with pyplot().rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)


def style() -> dict[str, str]:
    """matplotlib's settings under which a plot takes the page's own colour of text."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {**dict.fromkeys(inked, _INK), "font.family": "sans-serif"}


def curve(name: str, label: str, x: Sequence[float], y: Sequence[float], *, bound: float | None = None) -> str:
    """A line over updates with its moving mean, as an <svg> element. bound: what it may not pass."""
    plt = pyplot()
    with plt.rc_context(style()):
        figure, axes = plt.subplots(figsize=(4.6, 2.7), layout="constrained")
        width, at = max(1, len(y) // 25), _spread(len(y), POINTS)
        steps, values = np.asarray(x)[at], np.asarray(y, dtype=float)
        axes.plot(
            steps, values[at], color=_LINE, linewidth=1, alpha=0.35 if width > 1 else 1, marker="." * (len(y) == 1)
        )
        if width > 1:
            axes.plot(steps, _moving_mean(values, width)[at], color=_LINE, linewidth=1.8)
        if bound is not None and max(y) > 0.5 * bound:
            axes.axhline(bound, color="#c2573f", linewidth=1, linestyle="--")
        axes.set_title(label, fontsize=10, loc="left")
        axes.set_xlabel("update", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        svg = inline_svg(figure, name)
        plt.close(figure)
    return svg


def _moving_mean(y: np.ndarray, width: int) -> np.ndarray:
    """The mean of the last `width` values, of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(y)])
    ends = np.arange(1, len(y) + 1)
    begins = np.maximum(0, ends - width)
    means: np.ndarray = (sums[ends] - sums[begins]) / (ends - begins)
    return means
