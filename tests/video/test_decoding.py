"""Video files as cameras and programs make them: their own frames, or a refusal in words."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_video.decoding import SUFFIXES
from selfnpo_video.video_files import read_video, reader, write_video

FRAMES = np.zeros((12, 32, 48, 3), np.uint8)
for _k in range(12):
    FRAMES[_k, :, : 4 * _k] = 255  # as many bright columns as tell the frame's number
    FRAMES[_k, :8] = FRAMES[_k, :8] // 2


def ffmpeg(*words: object) -> None:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)], check=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "clip.mp4"
    write_video(path, FRAMES, fps=8)
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are."""
    return [round(float((frame[24] > 128).mean()) * 12) for frame in frames]


SOUND = ("-f", "lavfi", "-i", "sine=d=6")


def audio_longer(clip: Path, path: Path) -> None:
    ffmpeg("-i", clip, *SOUND, "-c:v", "copy", "-c:a", "aac", path)


def begins_late(clip: Path, path: Path) -> None:
    ffmpeg(*SOUND, "-itsoffset", 3, "-i", clip, "-map", "0:a", "-map", "1:v", "-c:v", "copy", "-c:a", "aac", path)


def has_cover(clip: Path, path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(path.with_suffix(".png"))
    ffmpeg(
        *("-i", path.with_suffix(".png"), "-i", clip, "-map", "0", "-map", "1", "-c", "copy"),
        *("-disposition:v:0", "attached_pic", path),
    )


def variable(clip: Path, path: Path) -> None:
    """Twelve frames, the sixth for three seconds, the seventh for a sixtieth."""
    times = "setpts='if(lt(N,6),N,if(lt(N,7),N+24,N+23.2))/8/TB'"
    ffmpeg("-i", clip, "-vf", times, "-fps_mode", "vfr", "-enc_time_base", "1:240", "-c:v", "libx264", path)


def trailed(clip: Path, path: Path) -> None:
    path.write_bytes(clip.read_bytes() + b"SEFT of a vendor, of no length that an mp4 knows" * 9)


def padded(clip: Path, path: Path) -> None:
    path.write_bytes(clip.read_bytes() + bytes(100))


def coded(*words: str) -> Callable[[Path, Path], None]:
    return lambda clip, path: ffmpeg("-i", clip, "-pix_fmt", "yuv420p", *words, path)


WHOLE = {
    "plain.MP4": coded("-c:v", "copy"),
    "audio-longer.mp4": audio_longer,
    "begins-late.mp4": begins_late,
    "begins-late.mkv": begins_late,
    "cover.mp4": has_cover,
    "variable.mp4": variable,
    "variable.mkv": variable,
    "trailed.mp4": trailed,
    "trailed.mov": trailed,
    "padded.mp4": padded,
    "at-the-end.mp4": coded("-c:v", "copy", "-movflags", "0"),
    "fragmented.mp4": coded("-c:v", "copy", "-movflags", "frag_keyframe+empty_moov"),
    "b-frames.mov": coded("-c:v", "libx264", "-bf", "3", "-crf", "10"),
    "old.avi": coded("-c:v", "mpeg4", "-q:v", "1"),
    "new.WEBM": coded("-c:v", "libvpx", "-b:v", "4M", "-auto-alt-ref", "1", "-lag-in-frames", "8"),
    "stream.ts": lambda clip, path: ffmpeg("-r", 25, "-i", clip, "-c:v", "mpeg2video", "-q:v", 1, path),
    "raw.y4m": coded(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_frame_comes_once(plain: Path, tmp_path: Path, name: str) -> None:
    WHOLE[name](plain, tmp_path / name)
    frames, fps = read_video(tmp_path / name)
    assert numbers(frames) == list(range(12))
    assert fps > 0
    assert numbers(read_video(tmp_path / name, limit=5)[0]) == list(range(5))


@pytest.mark.parametrize("turned", [90, 180, 270])
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_rotation_marks_are_obeyed(plain: Path, tmp_path: Path, turned: int, suffix: str) -> None:
    path = tmp_path / f"turned.{suffix}"
    ffmpeg("-display_rotation", turned, "-i", plain, "-c", "copy", path)
    wanted = np.rot90(read_video(plain)[0], turned // 90, axes=(1, 2)).astype(int)
    frames = read_video(path)[0]
    assert frames.shape == wanted.shape
    assert np.abs(frames - wanted).mean() < 3  # colours are sampled anew


def test_what_is_trimmed_stays_away(plain: Path, tmp_path: Path) -> None:
    """Frames before an edit list's beginning are in the file, and no part of the clip."""
    ffmpeg("-ss", 0.5, "-i", plain, "-c", "copy", tmp_path / "trimmed.mp4")
    assert numbers(read_video(tmp_path / "trimmed.mp4")[0]) == list(range(4, 12))


def cut(suffix: str, *words: str, kept: float = 0.7) -> Callable[[Path, Path], None]:
    def made(clip: Path, path: Path) -> None:
        whole = path.with_name(f"whole.{suffix}")
        noise = "noise=alls=100:allf=t"  # large enough that frames are cut
        ffmpeg("-i", clip, "-vf", noise, "-pix_fmt", "yuv420p", *words, whole)
        data = whole.read_bytes()
        path.write_bytes(data[: int(len(data) * kept)])

    return made


X264 = ("-c:v", "libx264")
REFUSED = {
    "cut.mp4": (cut("mp4", *X264), "cut off"),
    "cut-fast.mp4": (cut("mp4", *X264, "-movflags", "+faststart"), "cut off"),
    "cut-fragment.mp4": (cut("mp4", *X264, "-g", "2", "-movflags", "frag_keyframe+empty_moov"), "cut off"),
    "cut.webm": (cut("webm", "-c:v", "libvpx"), "cut off"),
    "cut.mkv": (cut("mkv", *X264), "cut off"),
    "cut.avi": (cut("avi", "-c:v", "mpeg4"), "cut off"),
    "clear.webm": (
        lambda clip, path: ffmpeg("-i", clip, "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", path),
        "transparency",
    ),
    "clear.mov": (lambda clip, path: ffmpeg("-i", clip, "-c:v", "qtrle", "-pix_fmt", "argb", path), "transparency"),
    "bright.mp4": (
        coded(*X264, "-vf", "setparams=color_trc=arib-std-b67:color_primaries=bt2020:colorspace=bt2020nc"),
        "high dynamic range",
    ),
    "wide.mp4": (coded(*X264, "-vf", "setsar=4/3"), "not square"),
    "sound.mp4": (lambda clip, path: ffmpeg(*SOUND, "-c:a", "aac", path), "holds no pictures that move"),
    "text.mp4": (lambda clip, path: path.write_text("hello"), "cannot be read as a video"),
    "empty.mp4": (lambda clip, path: path.write_bytes(b""), "is empty"),
    "list.mp4": (lambda clip, path: path.write_text(f"ffconcat version 1.0\nfile '{clip}'\n"), "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_come_out_wrong_is_refused(plain: Path, tmp_path: Path, name: str) -> None:
    make, said = REFUSED[name]
    make(plain, tmp_path / name)
    with pytest.raises(InputError, match=said) as error:
        read_video(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_ten_bits_are_read(plain: Path, tmp_path: Path) -> None:
    ffmpeg("-i", plain, "-c:v", "libx264", "-pix_fmt", "yuv420p10le", tmp_path / "deep.mp4")
    frames = read_video(tmp_path / "deep.mp4")[0].astype(int)
    assert np.abs(frames - read_video(plain)[0]).mean() < 3


def test_colours_lie_between_their_samples(tmp_path: Path) -> None:
    """4:2:0 with samples amid four pixels: slopes of colour are read as slopes, not as stairs."""
    slope, width, height = 4, 48, 32
    columns, rows = np.arange(width // 2), np.arange(height // 2)
    planes = (
        np.full((height, width), 128),
        np.tile(80 + slope * columns, (height // 2, 1)),
        np.tile(96 + slope * rows[:, None], (1, width // 2)),
    )
    header = f"YUV4MPEG2 W{width} H{height} F8:1 Ip A1:1 C420jpeg\nFRAME\n".encode()
    path = tmp_path / "slopes.y4m"
    path.write_bytes(header + b"".join(plane.astype(np.uint8).tobytes() for plane in planes))
    x, y = np.arange(width), np.arange(height)[:, None]
    blue, red = 80 + slope * (x - 0.5) / 2 - 128, 96 + slope * (y - 0.5) / 2 - 128
    grey = 255 / 219 * (128 - 16)  # BT.601
    wanted = np.broadcast_arrays(
        grey + 1.402 * 255 / 224 * red + 0 * x,
        grey - (0.114 * 1.772 / 0.587 * blue + 0.299 * 1.402 / 0.587 * red) * 255 / 224,
        grey + 1.772 * 255 / 224 * blue + 0 * y,
    )
    inner = np.s_[4:-4, 4:-4]
    assert np.abs(read_video(path)[0][0] - np.stack(wanted, axis=2))[inner].max() <= 2


@pytest.mark.parametrize("name", ["a:b.mp4", "-dash.mp4", "c:.mp4", "100%d.mp4", "a 'b' [c].gif", "größe.mp4"])
def test_names_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_video(Path(name), FRAMES, fps=8) == 12
    assert numbers(read_video(name)[0]) == list(range(12))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_as_long_as_a_disk_allows(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 251}.mp4"
    write_video(path, FRAMES, fps=8)
    assert numbers(read_video(path)[0]) == list(range(12))


def test_what_reads_is_named() -> None:
    assert reader().startswith("ffmpeg ")
    assert "Pillow" in reader()
    assert {".mp4", ".mkv", ".mov", ".webm", ".avi"} <= SUFFIXES


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webp", "clip.gif"])
def test_a_pointer_and_a_page_are_called_so(tmp_path: Path, name: str) -> None:
    for data, words in (
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"<html>", "a web page"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name} is .*{words}"):
            read_video(tmp_path / name)


def test_sound_alone_is_called_so(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "clip.mp4")
    with pytest.raises(InputError, match="holds no pictures that move, such as sound alone"):
        read_video(tmp_path / "clip.mp4")
