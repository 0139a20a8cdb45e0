"""Clips: read, shown without what else an mp4 may hold, damaged for attention checks."""

import subprocess
from functools import partial
from pathlib import Path

from imageio_ffmpeg import get_ffmpeg_exe

from selfnpo_core.sampling.medium import ShownMedium, damaged
from selfnpo_core.system.pictures import MOVING
from selfnpo_video import decoding
from selfnpo_video.decoding import address
from selfnpo_video.loops import is_loop, is_picture
from selfnpo_video.video_files import read_video, reader, write_video

SUFFIXES = frozenset({*decoding.SUFFIXES, *MOVING, ""})


def is_clip(path: Path) -> bool:
    return not is_picture(path) or is_loop(path)


def _size(path: Path, by: str) -> tuple[int, int]:
    frames, _ = read_video(path, reader=by)
    return frames.shape[2], frames.shape[1]


def _plain(source: Path, target: Path) -> None:
    """The video stream as it is, in a new file."""
    stream = ["-map", "0:V:0", "-c", "copy", "-map_metadata", "-1", "-fflags", "+bitexact", "-movflags", "+faststart"]
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-i", address(source), *stream, address(target)]
    subprocess.run(command, check=True)


def _damage(source: Path, target: Path, by: str) -> None:
    frames, fps = read_video(source, reader=by)
    write_video(target, damaged(frames), fps=max(1, round(fps)))


def clips(by: str = "ffmpeg") -> ShownMedium:
    """Clips, whose files one of `video_files.READERS` reads. Raises `InputError` where that is missing."""
    depends_on = reader(by)
    return ShownMedium(
        unit="clip",
        suffixes=SUFFIXES,
        read=lambda path: read_video(path, reader=by)[0],
        is_one=is_clip,
        reader=lambda: depends_on,
        suffix="mp4",
        content_type="video/mp4",
        size=partial(_size, by=by),
        plain=_plain,
        damage=partial(_damage, by=by),
    )
