"""Video files: written frame by frame, read by the fastest library that is installed.

Frames are uint8 RGB arrays (H, W, 3). Writing goes through imageio's ffmpeg: H.264 in yuv420p, which every browser
plays. Reading: decord (or decord2, which has the same module name), else PyAV, else imageio's ffmpeg.
"""

import errno
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs
from PIL import Image, ImageSequence
from torch import Tensor

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.system.files import named_aside

FORMATS = ("mp4", "webp", "gif", "frames")
Frame = np.ndarray
Read = tuple[np.ndarray, float, int]
"""Frames, their rate, and how many the file says it has at least (0 where it does not say)."""
Reader = Callable[[Path, int | None], Read]
_LITTLE_SPACE = 1 << 20
"""Bytes; where fewer are free, a video that could not be written is the full disk's fault."""
_H264: dict[str, Any] = {
    "codec": "libx264",
    "quality": None,
    "pixelformat": "yuv420p",
    "macro_block_size": 2,
    "output_params": ["-crf", "20", "-movflags", "+faststart"],
}


def to_frames(video: Tensor) -> np.ndarray:
    """(3, F, H, W) in [−1, 1] → (F, H, W, 3) uint8."""
    bytes_ = ((video.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return bytes_.permute(1, 2, 3, 0).cpu().numpy()


def write_video(path: Path, frames: Iterable[Frame], *, fps: int, format: str | None = None) -> int:
    """Write frames as they come; returns how many. The file gets its name when it is whole.

    format: of `FORMATS`, the suffix if not given; "frames" makes a folder of PNG files.
    """
    format = format or path.suffix.removeprefix(".")
    if format not in FORMATS:
        raise InputError(f"{path} has an unknown video format: use one of {', '.join(FORMATS)}")
    with named_aside(path) as aside:  # when writing fails, ffmpeg may still be about to make its file
        count = _WRITERS[format](aside, frames, fps)
        if count == 0:
            raise InputError(f"{path} would have no frames")
    return count


def read_video(path: str | Path, *, limit: int | None = None) -> tuple[np.ndarray, float]:
    """Frames (F, H, W, 3) uint8 and their rate, 0 for a folder of PNG files.

    Raises `InputError` for what is no whole video.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"video {path} does not exist: give a video file")
    if path.is_dir():
        read: Reader = _read_frames
    else:
        _refuse_cut_off(path)
        read = _read_loop if path.suffix in (".webp", ".gif") else reader()
    try:
        frames, fps, declared = read(path, limit)
    except Exception as error:  # every library has errors of its own
        detail = " ".join(str(error).split())[:120]
        raise InputError(f"{path} cannot be read as a video ({detail}): it may be cut off") from None
    if len(frames) == 0:
        raise InputError(f"{path} has no frames that can be read: it may be cut off, or no video at all")
    if len(frames) < min(declared, declared if limit is None else limit):
        raise InputError(f"{path} is cut off: {len(frames)} frames can be read, {declared} or more are announced")
    return frames, fps


def reader() -> Reader:
    """The fastest way to read that is installed."""
    if find_spec("decord"):
        return _read_decord
    return _read_av if find_spec("av") else _read_imageio


def _refuse_cut_off(path: Path) -> None:
    """The boxes of an mp4 or mov (ISO/IEC 14496-12, 4.2) must end where the file ends; other files pass.

    Readers fill up what is missing with copies of the last frame, or leave it out without a word.
    """
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return
        while at < size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:], "big")
            if len(head) < 8 or (0 < length < 8) or at + length > size:
                raise InputError(f"{path} is cut off: it ends within its {head[4:8].decode('latin-1')!r} part")
            at = at + length if length else size  # 0: up to the end


def _write_mp4(path: Path, frames: Iterable[Frame], fps: int) -> int:
    """ffmpeg's exit is not told, so what it wrote is counted."""
    count, sending = 0, False
    try:
        writer = imageio.get_writer(path, format="FFMPEG", mode="I", fps=fps, ffmpeg_log_level="error", **_H264)
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
        return int(count_frames_and_secs(str(path))[0])
    except (OSError, RuntimeError):
        return 0


def _unwritten(path: Path) -> Exception:
    if shutil.disk_usage(path.parent).free < _LITTLE_SPACE:
        return OSError(errno.ENOSPC, "no space left for a video", str(path))
    return RunError(f"{path.name} could not be written whole: ffmpeg stopped early; is the disk, or a quota, full?")


def _write_loop(path: Path, frames: Iterable[Frame], fps: int) -> int:
    """webp and gif: all frames are needed at once. Gif counts in hundredths of a second."""
    pictures = [Image.fromarray(frame) for frame in frames]
    if pictures:
        extra: dict[str, Any] = {"quality": 80, "method": 4} if path.suffix == ".webp" else {}
        duration = 10 * max(1, round(100 / fps)) if path.suffix == ".gif" else round(1000 / fps)
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0, **extra)
    return len(pictures)


def _write_frames(path: Path, frames: Iterable[Frame], fps: int) -> int:
    path.mkdir(parents=True, exist_ok=True)
    count = 0
    for frame in frames:
        Image.fromarray(frame).save(path / f"{count:05d}.png")
        count += 1
    return count


_WRITERS: dict[str, Callable[[Path, Iterable[Frame], int], int]] = {
    "mp4": _write_mp4,
    "webp": _write_loop,
    "gif": _write_loop,
    "frames": _write_frames,
}


def _read_frames(path: Path, limit: int | None) -> Read:
    files = sorted(path.glob("*.png"))
    frames = _stacked(np.asarray(Image.open(file).convert("RGB")) for file in files[:limit])
    return frames, 0.0, len(files)


def _read_loop(path: Path, limit: int | None) -> Read:
    """Frames that are equal to the one before are stored as a longer duration of it, and come back as often."""
    with Image.open(path) as picture:
        shown = [
            (np.asarray(frame.convert("RGB")), int(frame.info.get("duration") or 125))
            for frame in ImageSequence.Iterator(picture)
        ]
    each = math.gcd(*(duration for _, duration in shown))
    frames = (frame for frame, duration in shown for _ in range(duration // each))
    return _stacked(_first(frames, limit)), 1000 / each, 0


def _read_decord(path: Path, limit: int | None) -> Read:
    import decord

    video = decord.VideoReader(str(path), num_threads=1)
    count = len(video) if limit is None else min(limit, len(video))
    return video.get_batch(range(count)).asnumpy(), float(video.get_avg_fps()), len(video)


def _read_av(path: Path, limit: int | None) -> Read:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = _stacked(frame.to_ndarray(format="rgb24") for frame in _first(container.decode(stream), limit))
        return frames, float(stream.average_rate or 0), stream.frames


def _read_imageio(path: Path, limit: int | None) -> Read:
    """The header tells a duration and a mean rate, from which the number follows to within a tenth."""
    opened: Any = imageio.get_reader(path, format="FFMPEG")  # its stub takes an iterator of it for one frame
    with opened as video:
        about = video.get_meta_data()
        frames = _stacked(_first(iter(video), limit))
        return frames, float(about["fps"]), math.floor(0.9 * about["fps"] * about["duration"])


def _first(frames: Iterator[Any], limit: int | None) -> Iterator[Any]:
    for index, frame in enumerate(frames):
        if limit is not None and index >= limit:
            return
        yield frame


def _stacked(frames: Iterable[np.ndarray]) -> np.ndarray:
    found: Sequence[np.ndarray] = list(frames)
    return np.stack(found) if found else np.empty((0, 0, 0, 3), np.uint8)
