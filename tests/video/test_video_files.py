"""Videos written and read back; files that are none."""

import errno
import subprocess
import sys

import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_video.video_files import read_video, to_frames, write_video


@pytest.fixture
def clip() -> np.ndarray:
    """17 frames, a bright square that moves to the right."""
    frames = np.full((17, 64, 64, 3), 40, np.uint8)
    for k in range(17):
        frames[k, 20:44, 2 * k : 2 * k + 24] = (220, 60, 60)
    return frames


def test_mp4_round_trip(tmp_path, clip):
    assert write_video(tmp_path / "clip.mp4", iter(clip), fps=8) == 17
    frames, fps = read_video(tmp_path / "clip.mp4")
    assert frames.shape == clip.shape
    assert fps == pytest.approx(8)
    assert np.abs(frames.astype(int) - clip).mean() < 6  # lossy
    assert len(read_video(tmp_path / "clip.mp4", limit=3)[0]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4"]


COLOURS = ((200, 60, 30), (30, 200, 60), (20, 30, 220), (255, 255, 255), (0, 0, 0))


@pytest.mark.parametrize("size", [(64, 96), (63, 97)])
def test_colours_of_an_mp4_are_those_of_bt709(tmp_path, size):
    """As a player sees them that goes by BT.709, whatever the file says of itself, and as the file says."""
    file = tmp_path / "clip.mp4"
    for colour in COLOURS:
        write_video(file, np.full((9, *size, 3), colour, np.uint8), fps=8)
        played = [
            "-vf",
            "scale=in_color_matrix=bt709:in_range=tv:flags=bicubic+accurate_rnd+full_chroma_int",
            "-pix_fmt",
            "rgb24",
        ]
        asked = [get_ffmpeg_exe(), "-v", "error", "-i", str(file), *played, "-f", "rawvideo", "-"]
        pixels = np.frombuffer(subprocess.run(asked, capture_output=True, check=True).stdout, np.uint8)
        assert len(pixels) == 9 * 64 * (size[1] + size[1] % 2) * 3
        assert np.abs(pixels.reshape(-1, 3).astype(int) - colour).max() <= 2
        assert np.abs(read_video(file)[0].astype(int) - colour).max() <= 2
    said = subprocess.run([get_ffmpeg_exe(), "-i", str(file)], capture_output=True, text=True).stderr
    assert "yuv420p(tv, bt709, progressive)" in said


@pytest.mark.parametrize(("matrix", "mark"), [("bt709", "bt709"), ("bt601", "smpte170m"), ("bt601", None)])
def test_a_clip_is_read_as_it_says_and_else_by_bt601(tmp_path, matrix, mark):
    mark = [] if mark is None else ["-colorspace", mark]
    source = [
        "-f",
        "lavfi",
        "-i",
        "color=0xC83C1E:s=96x64:d=1:r=8,format=rgb24",
        "-vf",
        f"scale=out_color_matrix={matrix}",
    ]
    file = tmp_path / "clip.mp4"
    written = [get_ffmpeg_exe(), "-v", "error", *source, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "10"]
    subprocess.run([*written, *mark, str(file)], check=True)
    assert np.abs(read_video(file)[0].astype(int) - COLOURS[0]).max() <= 2


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_loops(tmp_path, clip, suffix):
    write_video(tmp_path / f"clip.{suffix}", clip, fps=8)
    frames, fps = read_video(tmp_path / f"clip.{suffix}")
    assert frames.shape == clip.shape
    assert fps == pytest.approx(8, rel=0.05)
    assert np.abs(frames.astype(int) - clip).mean() < 6


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_frames_that_stand_still_come_back(tmp_path, suffix):
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    frames[5:] = 200
    write_video(tmp_path / f"clip.{suffix}", frames, fps=8)
    back, fps = read_video(tmp_path / f"clip.{suffix}")
    assert [int(frame.mean() > 100) for frame in back] == [0] * 5 + [1] * 4
    assert fps == pytest.approx(8, rel=0.1)
    assert len(read_video(tmp_path / f"clip.{suffix}", limit=7)[0]) == 7


def test_frames_become_a_folder(tmp_path, clip):
    write_video(tmp_path / "clip", clip, fps=8, format="frames")
    assert np.array_equal(read_video(tmp_path / "clip")[0], clip)


def test_a_folder_of_frames_as_others_make_them(tmp_path, clip):
    """Numbers without zeros, suffixes in capitals, several formats, and what is no frame beside them."""
    suffixes = ("png", "PNG", "bmp", "tiff", "TIF", "webp")
    for number, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.{suffixes[number % 6]}", lossless=True)
    (tmp_path / "notes.txt").write_text("17 frames")
    (tmp_path / ".frame3.png").write_bytes(b"")
    assert np.array_equal(read_video(tmp_path)[0], clip)
    assert np.array_equal(read_video(tmp_path, limit=12)[0], clip[:12])
    Image.fromarray(clip[0, :32]).save(tmp_path / "frame17.png")
    with pytest.raises(InputError, match="several sizes"):
        read_video(tmp_path)


def test_what_fails_leaves_nothing_and_what_was_there_stays(tmp_path, clip):
    write_video(tmp_path / "clip.mp4", clip, fps=8)
    before = (tmp_path / "clip.mp4").read_bytes()

    def broken():
        yield clip[0]
        raise RuntimeError("the sampler failed")

    with pytest.raises(RuntimeError, match="sampler"):
        write_video(tmp_path / "clip.mp4", broken(), fps=8)
    assert (tmp_path / "clip.mp4").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "other.mp4", iter(()), fps=8)


def test_what_is_no_whole_video_is_refused(tmp_path, clip):
    write_video(tmp_path / "clip.mp4", clip, fps=8)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:300])
    (tmp_path / "text.mp4").write_text("hello")
    for name in ("cut.mp4", "text.mp4", "missing.mp4"):
        with pytest.raises(InputError, match=name):
            read_video(tmp_path / name)
    with pytest.raises(InputError, match="format"):
        write_video(tmp_path / "clip.avi", clip, fps=8)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97, 0.9999])
def test_an_mp4_that_is_cut_off_anywhere_is_refused(tmp_path, kept):
    frames = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)  # noise is large
    write_video(tmp_path / "clip.mp4", frames, fps=8)
    whole = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * kept)])
    assert len(read_video(tmp_path / "clip.mp4")[0]) == 17
    with pytest.raises(InputError, match=r"cut\.mp4 is cut off"):
        read_video(tmp_path / "cut.mp4")


def test_a_clip_that_is_cut_in_its_frames_is_refused(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)  # noise is large
    write_video(tmp_path / "clip.mp4", frames, fps=8)
    whole = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    assert len(read_video(tmp_path / "clip.mp4")[0]) == 17
    with pytest.raises(InputError, match=r"cut\.mp4"):
        read_video(tmp_path / "cut.mp4")
    write_video(tmp_path / "frames", frames, fps=8, format="frames")
    picture = tmp_path / "frames" / "00003.png"
    picture.write_bytes(picture.read_bytes()[:500])
    with pytest.raises(InputError, match=r"frames/00003\.png cannot be read"):
        read_video(tmp_path / "frames")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no frames"):
        read_video(tmp_path / "empty")


LIMITED = """
import resource, shutil, sys
from collections import namedtuple
from pathlib import Path
import numpy as np
from selfnpo_video.video_files import write_video
folder, count, free = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
frames = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
shutil.disk_usage = lambda path: namedtuple("usage", "free")(free)
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
try:
    write_video(folder / "clip.mp4", iter(frames), fps=8)
except Exception as error:
    print(type(error).__name__, getattr(error, "errno", None))
"""


@pytest.mark.parametrize("count", [5, 200])  # ffmpeg fails at its end, or while frames are still being sent
@pytest.mark.parametrize(("free", "said"), [(0, f"OSError {errno.ENOSPC}"), (1 << 30, "RunError None")])
def test_what_ffmpeg_could_not_write_is_an_error(tmp_path, count, free, said):
    """No file may grow beyond 4,000 bytes here."""
    (tmp_path / "clip.mp4").write_bytes(b"before")
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(count), str(free)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == said
    assert (tmp_path / "clip.mp4").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_tensors_become_frames():
    video = torch.stack([torch.full((5, 4, 6), v) for v in (-1.0, 0.0, 1.0)])
    frames = to_frames(video)
    assert frames.shape == (5, 4, 6, 3)
    assert frames[0, 0, 0].tolist() == [0, 128, 255]
    assert not to_frames(torch.full((3, 1, 2, 2), torch.nan)).any()
