"""Video files to frames by decord, on demand: for figures that stand beside others that were measured of its pixels.

Its frames are held against ffmpeg's, which refuse whatever `decoding` does: decord conceals damage, counts packets for
frames, and knows neither high dynamic range nor transparency. What it gives must be as many frames, of one size, in the
same order and turned alike. Its colours are its own: it repeats those that are stored at half the resolution for two by
two pixels. The means of squares of 8 pixels may differ by `TOLERANCE`, on average over a frame. By swscale's conversion
that decord asks for, they were measured to differ by 2.5 of 255 at most, in clips whose pure colours change from pixel
to pixel.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from selfnpo_core.errors import InputError
from selfnpo_video import decoding

TOLERANCE = 4.0
"""Of 255. Another matrix of colours costs more."""
_SQUARE = 8
_SLACK = 0.05
"""Of 255: by how much less a frame may differ from a neighbour of its own than from itself; noise does so."""


def reader() -> str:
    """What the frames of a video file depend on beside the file. Raises `InputError` where decord is missing."""
    return f"decord {_decord().__version__}, held against {decoding.reader()}"


def read_frames(path: Path, limit: int | None) -> tuple[np.ndarray, float]:
    """Frames (F, H, W, 3) uint8 of a video file by decord, F ≤ limit, and how many a second there are in the mean.

    Raises `InputError` for what `decoding.read_frames` refuses, and for what decord would read otherwise than that.
    """
    decord = _decord()
    wanted, fps = decoding.read_frames(path, limit)
    try:
        frames = list(_frames(decord, path, limit))
    except Exception as error:  # of decord's own kinds
        raise _refused(path, " ".join(str(error).split())[:120]) from None
    if why := _difference(frames, wanted):
        raise _refused(path, why)
    return np.stack(frames) if frames else wanted, fps


def _decord() -> ModuleType:
    try:
        import decord
    except ImportError:
        raise InputError("--reader decord needs decord: pip install 'selfnpo-video[decord]'") from None
    except OSError as error:  # its libraries
        raise InputError(f"--reader decord: it does not load here ({error}); leave --reader out") from None
    return decord


def _frames(decord: ModuleType, path: Path, limit: int | None) -> Iterator[np.ndarray]:
    """One after the other: decord's seeking is not exact in every file."""
    clip = decord.VideoReader(decoding.address(path), num_threads=1)
    for _ in range(len(clip) if limit is None else min(limit, len(clip))):
        try:
            yield clip.next().asnumpy()
        except StopIteration:
            return


def _refused(path: Path, why: str) -> InputError:
    return InputError(f"decord does not read {path} as ffmpeg does ({why}): leave --reader decord out")


def _difference(frames: list[np.ndarray], wanted: np.ndarray) -> str | None:
    """In words, what is not alike."""
    if len(frames) != len(wanted):
        return f"{len(frames)} of its {len(wanted)} frames"
    if sizes := {frame.shape for frame in frames} - {wanted.shape[1:]}:
        height, width = next(iter(sizes))[:2]
        return f"frames of {width}x{height}, not {wanted.shape[2]}x{wanted.shape[1]}"
    theirs, ours = ([_squares(frame) for frame in some] for some in (frames, wanted))
    for index, frame in enumerate(theirs):
        own = _apart(frame, ours[index])
        if own > TOLERANCE:
            return f"frame {index} differs by {own:.1f} of 255"
        nearby = [_apart(frame, ours[k]) for k in (index - 1, index + 1) if 0 <= k < len(ours)]
        if nearby and min(nearby) < own - _SLACK:
            return f"frame {index} is another one"
    return None


def _squares(frame: np.ndarray) -> Tensor:
    """(H, W, 3) → means of squares (3, ⌈H/8⌉, ⌈W/8⌉)."""
    sides = [-(-side // _SQUARE) for side in frame.shape[:2]]
    return interpolate(torch.tensor(frame).permute(2, 0, 1)[None].float(), sides, mode="area")[0]


def _apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().mean().item()
