"""Animated GIF, WebP and PNG: a picture that is stored is a frame.

Writers store equal frames as one that stays longer, which durations alone do not tell from a clip whose frames have
durations of their own. So those that we write say how many frames of which duration they hold, and are read as such.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from selfnpo_core.errors import InputError
from selfnpo_core.system.pictures import FORMATS, MOVING, flattened, is_moving

_MARK = "selfnpo {count} frames of {each} ms"
_MARKED = re.compile(rb"selfnpo (\d+) frames of (\d+) ms")
_BLOCK, _PICTURE, _END = 0x21, 0x2C, 0x3B
"""Of a GIF: an extension, a picture, the end."""


def is_picture(path: Path) -> bool:
    """Whether a clip's file is one that Pillow reads."""
    return path.suffix.lower() in MOVING


def is_loop(path: Path) -> bool:
    """Whether such a file is a clip: it moves, or is one of ours in which nothing moves."""
    return is_moving(path) or _MARKED.search(path.read_bytes()) is not None


def write_loop(path: Path, frames: Iterable[np.ndarray], fps: int) -> int:
    """All frames are needed at once. Gif counts in hundredths of a second."""
    pictures = [Image.fromarray(frame) for frame in frames]
    if pictures:
        is_gif = path.suffix.lower() == ".gif"
        each = 10 * max(1, round(100 / fps)) if is_gif else round(1000 / fps)
        mark = _MARK.format(count=len(pictures), each=each)
        extra: dict[str, Any] = {"comment": mark.encode()}
        if not is_gif:
            extra = {
                "quality": 80,
                "method": 4,
                "xmp": f'<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="{mark}"/>'.encode(),
            }
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=each, loop=0, **extra)
    return len(pictures)


def read_loop(path: Path, limit: int | None) -> tuple[np.ndarray, float]:
    """Frames (F, H, W, 3) uint8 on white, F ≤ limit, and how many a second there are in the mean, 0 if not known."""
    if path.suffix.lower() == ".gif" and not _has_end(path.read_bytes()):
        raise InputError(f"{path} is cut off: it has no end")
    frames, durations, mark = [], [], None
    with Image.open(path, formats=FORMATS) as picture:
        for frame in ImageSequence.Iterator(picture):
            if frame.info.get("default_image") and frame.tell() == 0:
                continue  # of a PNG: what programs show that play none
            mark = mark or _MARKED.search(_bytes(frame.info.get("comment")) + _bytes(frame.info.get("xmp")))
            frames.append(np.asarray(flattened(frame, str(path))))
            durations.append(round(frame.info.get("duration") or 0))
    fps = 1000 * len(frames) / sum(durations) if sum(durations) else 0.0
    if mark is not None:
        count, each = int(mark[1]), int(mark[2])
        times = [max(1, round(duration / each)) for duration in durations] if len(frames) > 1 and each else [count]
        if sum(times) == count:
            frames = [frame for frame, often in zip(frames, times, strict=True) for _ in range(often)]
            fps = 1000 / each if each else 0.0
    return np.stack(frames[:limit]), fps


def _bytes(text: bytes | str | None) -> bytes:
    return text.encode() if isinstance(text, str) else text or b""


def _has_end(data: bytes) -> bool:
    """Whether a GIF's blocks (GIF89a specification, appendix B) go on to its end; Pillow stops at any."""
    if data[:4] != b"GIF8" or len(data) < 13:
        return True  # no GIF: the reader says so
    at = 13 + _table(data[10])
    while at < len(data):
        kind = data[at]
        if kind == _END:
            return True
        if kind == _BLOCK:
            at += 2
        elif kind == _PICTURE and at + 9 < len(data):
            at += 11 + _table(data[at + 9])
        else:
            return False
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    return False


def _table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
