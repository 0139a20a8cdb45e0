"""Clips: written frame by frame, and the one way in which they are read.

Frames are uint8 RGB arrays (H, W, 3). Both ways go through imageio's ffmpeg: H.264 in yuv420p, which every browser
plays, is written, and what `decoding` names is read, by decord only where it is asked for (`decord_frames`). Animated
pictures go through Pillow (`loops`).

Colours are converted by BT.709's matrix, and the file says so. ffmpeg's default is BT.601 without a mark, which players
take for BT.709 where the picture is large: (200, 60, 30) then comes out as (212, 70, 26).
"""

import errno
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs
from PIL import Image
from torch import Tensor

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.system import pictures
from selfnpo_core.system.files import named_aside
from selfnpo_core.system.foreign import foreign_kind
from selfnpo_video import decoding, decord_frames
from selfnpo_video.decoding import address
from selfnpo_video.loops import is_picture, read_loop, write_loop

FORMATS = ("mp4", "webp", "gif", "frames")
Frame = np.ndarray
READERS = {"ffmpeg": decoding, "decord": decord_frames}
"""Of video files; the first is the default. Animated pictures and folders have no other than Pillow."""
_LITTLE_SPACE = 1 << 20
"""Bytes; where fewer are free, a video that could not be written is the full disk's fault."""
_BT709 = (
    "scale=ceil(iw/2)*2:ceil(ih/2)*2:out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)
"""In place of imageio's own filter, which makes odd sides even and converts by BT.601."""
_H264: dict[str, Any] = {
    "codec": "libx264",
    "quality": None,
    "pixelformat": "yuv420p",
    "macro_block_size": 2,
    "output_params": ["-crf", "20", "-movflags", "+faststart", "-vf", _BT709],
}


def to_frames(video: Tensor) -> np.ndarray:
    """(3, F, H, W) in [−1, 1] → (F, H, W, 3) uint8; NaN is black."""
    bytes_ = ((video.float().nan_to_num(nan=-1.0) / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return bytes_.permute(1, 2, 3, 0).cpu().numpy()


def write_video(path: Path, frames: Iterable[Frame], *, fps: int, format: str | None = None) -> int:
    """Write frames as they come; returns how many. The file gets its name when it is whole.

    format: of `FORMATS`, the suffix if not given; "frames" makes a folder of PNG files.
    """
    format = format or path.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        raise InputError(f"{path} has an unknown video format: use one of {', '.join(FORMATS)}")
    with named_aside(path) as aside:  # when writing fails, ffmpeg may still be about to make its file
        count = _WRITERS[format](aside, frames, fps)
        if count == 0:
            raise InputError(f"{path} would have no frames")
    return count


def read_video(path: str | Path, *, limit: int | None = None, reader: str = "ffmpeg") -> tuple[np.ndarray, float]:
    """Frames (F, H, W, 3) uint8 and how many a second there are in the mean, 0 where nothing says so.

    A file, or a folder of pictures in the order of the numbers in their names. reader: of `READERS`, for video files.
    Raises `InputError` for what is no whole video.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"video {path} does not exist: give a video file, or a folder of its frames")
    of_files = READERS[reader].read_frames
    read = _read_folder if path.is_dir() else read_loop if is_picture(path) else of_files
    if not path.is_dir() and (what := foreign_kind(path)):
        raise InputError(f"{path} {what}")
    try:
        frames, fps = read(path, limit)
    except InputError:
        raise
    except Exception as error:  # every library has errors of its own
        detail = " ".join(str(error).replace(str(path), "").split())[:120]
        raise InputError(f"{path} cannot be read as a video ({detail}): it may be cut off") from None
    if len(frames) == 0:
        raise InputError(f"{path} has no frames that can be read: it may be cut off, or no video at all")
    return frames, fps


def reader(name: str = "ffmpeg") -> str:
    """What the frames of a clip depend on beside its file. Raises `InputError` where that reader is missing."""
    return f"{READERS[name].reader()}, {pictures.reader()}"


def _write_mp4(path: Path, frames: Iterable[Frame], fps: int) -> int:
    """ffmpeg's exit is not told, so what it wrote is counted."""
    count, sending = 0, False
    try:
        writer = imageio.get_writer(
            address(path), format="FFMPEG", mode="I", fps=fps, ffmpeg_log_level="error", **_H264
        )
        with writer:
            for frame in frames:
                sending = True
                writer.append_data(frame)
                sending = False
                count += 1
    except OSError as error:
        if sending:
            raise _unwritten(path) from error
        raise
    if count and _stored_frames(path) != count:
        raise _unwritten(path)
    return count


def _stored_frames(path: Path) -> int:
    try:
        return int(count_frames_and_secs(address(path))[0])
    except (OSError, RuntimeError):
        return 0


def _unwritten(path: Path) -> Exception:
    if shutil.disk_usage(path.parent).free < _LITTLE_SPACE:
        return OSError(errno.ENOSPC, "no space left for a video", str(path))
    return RunError(f"{path.name} could not be written whole: ffmpeg stopped early; is the disk, or a quota, full?")


def _write_frames(path: Path, frames: Iterable[Frame], fps: int) -> int:
    path.mkdir(parents=True, exist_ok=True)
    count = 0
    for frame in frames:
        Image.fromarray(frame).save(path / f"{count:05d}.png")
        count += 1
    return count


_WRITERS: dict[str, Callable[[Path, Iterable[Frame], int], int]] = {
    "mp4": _write_mp4,
    "webp": write_loop,
    "gif": write_loop,
    "frames": _write_frames,
}


def _read_folder(path: Path, limit: int | None) -> tuple[np.ndarray, float]:
    frames = [np.asarray(pictures.read_picture(file)) for file in pictures.frame_files(path)[:limit]]
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"{path} holds frames of several sizes: a clip's frames are of one")
    return np.stack(frames) if frames else np.empty((0, 0, 0, 3), np.uint8), 0.0
