"""Animated pictures as programs make them: a picture that is stored is a frame."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_video.medium import is_clip
from selfnpo_video.video_files import read_video, write_video

COUNT = 24
FRAMES = np.zeros((COUNT, 16, 48, 3), np.uint8)
for _k in range(COUNT):
    FRAMES[_k, :, : 2 * _k + 1] = 255
DURATIONS = {
    "equal": [40] * COUNT,
    "rounded": [33, 33, 34] * 8,
    "variable": [30, 500, 70, 10] * 6,
    "held at the end": [50] * (COUNT - 1) + [3000],
    "none": [0] * COUNT,
}


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float((frame[8] > 128).mean()) * 48 - 1) / 2) for frame in frames]


def stored(path: Path, pictures: list[Image.Image], **more: object) -> None:
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **more)


@pytest.mark.parametrize("durations", DURATIONS)
@pytest.mark.parametrize("suffix", ["gif", "webp", "WEBP", "png", "apng"])
def test_every_stored_frame_comes_once(tmp_path: Path, suffix: str, durations: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    stored(path, [Image.fromarray(frame) for frame in FRAMES], duration=DURATIONS[durations])
    frames, fps = read_video(path)
    assert numbers(frames) == list(range(COUNT))
    total = sum(DURATIONS[durations])
    assert fps == pytest.approx(1000 * COUNT / total if total else 0, rel=0.35)  # gif has hundredths of a second
    assert numbers(read_video(path, limit=5)[0]) == list(range(5))


@pytest.mark.parametrize("fps", [3, 7, 8, 24, 30, 60])
@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_what_stands_still_in_ours_comes_back(tmp_path: Path, suffix: str, fps: int) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_video(path, FRAMES[[3] * 9], fps=fps)
    assert numbers(read_video(path)[0]) == [3] * 9
    assert is_clip(path)
    write_video(path, FRAMES[[0, 0, 0, 5, 6, 6, 7, 7, 7, 7]], fps=fps)
    frames, read_fps = read_video(path)
    assert numbers(frames) == [0, 0, 0, 5, 6, 6, 7, 7, 7, 7]
    assert read_fps == pytest.approx(fps, rel=0.2)
    assert numbers(read_video(path, limit=4)[0]) == [0, 0, 0, 5]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_what_is_transparent_is_white(tmp_path: Path, suffix: str) -> None:
    opacity = np.full((3, 16, 48, 1), 255, np.uint8)
    opacity[:, :8] = 0
    seen = np.concatenate([FRAMES[[3, 9, 15]], opacity], axis=-1)
    cleared = 1 if suffix == "png" else 2  # before the next frame
    stored(tmp_path / f"clip.{suffix}", [Image.fromarray(frame) for frame in seen], disposal=cleared, lossless=True)
    frames = read_video(tmp_path / f"clip.{suffix}")[0]
    assert (frames[:, :8] == 255).all()
    assert numbers(frames[:, 4:]) == [3, 9, 15]  # row 8 of these is row 12 of the clip


def test_a_picture_for_programs_that_play_none_is_no_frame(tmp_path: Path) -> None:
    cover = Image.new("RGB", (48, 16), "red")
    frames = [Image.fromarray(frame) for frame in FRAMES[:4]]
    cover.save(tmp_path / "clip.png", save_all=True, append_images=frames, default_image=True)
    assert numbers(read_video(tmp_path / "clip.png")[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9, 0.995])
@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_what_is_cut_off_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    stored(tmp_path / f"clip.{suffix}", [Image.fromarray(frame) for frame in noise])
    whole = (tmp_path / f"clip.{suffix}").read_bytes()
    (tmp_path / f"clip.{suffix}").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InputError, match=rf"clip\.{suffix}"):
        read_video(tmp_path / f"clip.{suffix}")


def test_a_gif_that_is_cut_between_two_frames_is_refused(tmp_path: Path) -> None:
    stored(tmp_path / "clip.gif", [Image.fromarray(frame) for frame in FRAMES], duration=40)
    whole = (tmp_path / "clip.gif").read_bytes()
    extension = b"\x21\xf9\x04"  # before every frame
    (tmp_path / "clip.gif").write_bytes(whole[: whole.rindex(extension)])
    with pytest.raises(InputError, match="cut off"):
        read_video(tmp_path / "clip.gif")
    (tmp_path / "clip.gif").write_bytes(whole + struct.pack("<I", 7))  # what others put behind the end
    assert len(read_video(tmp_path / "clip.gif")[0]) == COUNT
