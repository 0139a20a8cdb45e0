"""Video files to frames, by the ffmpeg that comes with imageio: the same frames on every machine that has its version.

A frame of the file is a frame, whatever the times between them. Rotation marks are obeyed. What would come out wrong
without a word is refused: high dynamic range, transparency, pixels that are not square, files that are cut off.

Colours stored at half the resolution (4:2:0, as nearly all clips are) are interpolated. swscale's default conversion,
which is the one in decord's source, repeats each for two by two pixels. Measured with imageio's ffmpeg on its test
pattern at constant rate, at variable rate and begun late: 45 % of the values then differ by more than 2/255, the worst
by 166; only grey clips (1) and those with all their colours (4:4:4, 0) come out equal. Nor does decord tell what a
decoder had to conceal. So it reads where it is asked for only (`decord_frames`).
"""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe, get_ffmpeg_version

from selfnpo_core.errors import InputError

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts"}
    | {".wmv", ".flv", ".ogv", ".y4m"}
)
_CONTAINERS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,yuv4mpegpipe"
"""What may be opened; others, such as playlists, make ffmpeg open further files."""
_DAMAGE = re.compile(r"ended prematurely|partial file|[Cc]orrupt|[Tt]runcat|concealing")
_HIGH_RANGE = ("smpte2084", "arib-std-b67")
_OPAQUE = re.compile(r"(?!yuva|rgba|bgra|argb|abgr|ayuv|vuya|gbrap|ya\d)")
_SQUARE = 0.01
"""By how much a pixel may be wider than high; scaling leaves such traces."""


def reader() -> str:
    """What the frames of a video file depend on beside the file."""
    return f"ffmpeg {_version()}"


@cache
def _version() -> str:
    """Of the program itself, which is asked once."""
    return str(get_ffmpeg_version())


def address(path: Path) -> str:
    """A path as ffmpeg takes it for nothing else: a colon in a relative one makes a protocol, a dash an option."""
    return str(path.absolute())


def read_frames(path: Path, limit: int | None) -> tuple[np.ndarray, float]:
    """Frames (F, H, W, 3) uint8 of a video file, F ≤ limit, and how many a second there are in the mean.

    Raises `InputError` for what is no whole video, or would come out wrong.
    """
    _refuse_cut_off(path)
    with TemporaryFile() as log:
        with subprocess.Popen(_command(path, limit), stdout=subprocess.PIPE, stderr=log) as ffmpeg:
            assert ffmpeg.stdout is not None
            frames = list(_pictures(ffmpeg.stdout))
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    if damage := [line for line in said.splitlines() if _DAMAGE.search(line)]:
        raise InputError(f"{path} is cut off or damaged ({_words(damage[0])}): make or copy it again")
    if ffmpeg.returncode != 0:
        if "for option 'map'" in said or "matches no streams" in said:
            raise InputError(f"{path} holds no pictures that move, such as sound alone: give a video")
        errors = [line for line in said.splitlines() if "[error]" in line] or ["ffmpeg failed"]
        raise InputError(f"{path} cannot be read as a video ({_words(errors[0])}): give another file")
    stream = _stream(said)
    _refuse_wrong(path, stream, said)
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"{path} holds frames of several sizes: cut it where they change")
    rate = re.search(r"([\d.]+)(k?) fps", stream)
    fps = 0.0 if rate is None else float(rate[1]) * (1000 if rate[2] else 1)
    return np.stack(frames) if frames else np.empty((0, 0, 0, 3), np.uint8), fps


def _command(path: Path, limit: int | None) -> list[str]:
    """As portable pixmaps, each of which says its size. An older ffmpeg has other words for "every frame once"."""
    number = re.match(r"n?(\d+)\.(\d+)", _version())
    is_old = number is not None and (int(number[1]), int(number[2])) < (5, 1)
    once = ["-vsync", "passthrough"] if is_old else ["-noautoscale", "-fps_mode", "passthrough"]
    return [
        *(get_ffmpeg_exe(), "-loglevel", "level+info", "-hide_banner", "-nostats", "-nostdin"),
        *("-threads", "1", "-protocol_whitelist", "file,pipe", "-format_whitelist", _CONTAINERS),
        *("-i", address(path), "-map", "0:V:0", *once, *([] if limit is None else ["-frames:v", str(limit)])),
        *("-sws_flags", "bicubic+accurate_rnd+full_chroma_int+bitexact"),
        *("-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "pipe:1"),
    ]


def _pictures(stream: IO[bytes]) -> Iterator[np.ndarray]:
    while stream.readline() == b"P6\n":
        width, height = map(int, stream.readline().split())
        stream.readline()
        data = stream.read(3 * width * height)
        if len(data) == 3 * width * height:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _stream(said: str) -> str:
    """What ffmpeg says of the stream that it read."""
    index = re.search(r"Stream #0:(\d+) -> #0:0", said)
    number = index[1] if index else "0"
    line = re.search(rf"Stream #0:{number}\b.*Video: .*", said)
    return line[0] if line else ""


def _refuse_wrong(path: Path, stream: str, said: str) -> None:
    layout = re.search(r"Video: [^,]*(?:\([^)]*\))*, (\w+)", stream)
    opaque = layout is None or _OPAQUE.match(layout[1])
    if not opaque or re.search(r"alpha_mode\s*: 1", said):
        raise InputError(f"{path} has transparency: lay it on a ground of your choice first")
    if transfer := [name for name in _HIGH_RANGE if re.search(rf"[/ (,]{name}\b", stream)]:
        raise InputError(f"{path} is of high dynamic range ({transfer[0]}): map its tones to 8 bits first")
    shape = re.search(r"SAR (\d+):(\d+)", stream)
    if shape and int(shape[1]) and int(shape[2]) and abs(int(shape[1]) / int(shape[2]) - 1) > _SQUARE:
        raise InputError(f"{path} has pixels that are not square ({shape[0]}): scale it first")


def _words(line: str) -> str:
    """A line of ffmpeg's without its brackets."""
    return re.sub(r"\[[^\]]*\] *", "", line).strip()[:120]


def _refuse_cut_off(path: Path) -> None:
    """The parts of an mp4 or mov that hold pictures (ISO/IEC 14496-12, 4.2) must end within the file.

    Readers fill up what is missing with copies of the last frame, or leave it out without a word. What cameras and
    programs put behind the last part need not be one.
    """
    size, at = path.stat().st_size, 0
    seen: set[bytes] = set()
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return
        while at < size:
            file.seek(at)
            head = file.read(16)
            kind, length = head[4:8], int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:], "big")
            if len(head) < 8 or (0 < length < 8) or at + length > size:
                if {b"moov", b"mdat"} <= seen and kind not in (b"moof", b"mdat"):
                    return
                raise InputError(f"{path} is cut off: it ends within its {kind.decode('latin-1')!r} part")
            seen.add(kind)
            at = at + length if length else size  # 0: up to the end
    if b"moov" not in seen:
        raise InputError(f"{path} is cut off: its 'moov' part is missing")
