"""Videos written and read back; files that are none."""

import numpy as np
import pytest
import torch

from selfnpo_core.errors import InputError
from selfnpo_video import video_files
from selfnpo_video.video_files import read_video, strip, to_frames, write_video


@pytest.fixture
def clip() -> np.ndarray:
    """17 frames, a bright square that moves to the right."""
    frames = np.full((17, 64, 64, 3), 40, np.uint8)
    for k in range(17):
        frames[k, 20:44, 2 * k : 2 * k + 24] = (220, 60, 60)
    return frames


@pytest.mark.parametrize("read", [video_files._read_imageio, None])
def test_mp4_round_trip(tmp_path, clip, read, monkeypatch):
    if read:
        monkeypatch.setattr(video_files, "reader", lambda: read)
    assert write_video(tmp_path / "clip.mp4", iter(clip), fps=8) == 17
    frames, fps = read_video(tmp_path / "clip.mp4")
    assert frames.shape == clip.shape
    assert fps == pytest.approx(8)
    assert np.abs(frames.astype(int) - clip).mean() < 6  # lossy
    assert len(read_video(tmp_path / "clip.mp4", limit=3)[0]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4"]


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


def test_tensors_become_frames_and_a_strip():
    video = torch.stack([torch.full((5, 4, 6), v) for v in (-1.0, 0.0, 1.0)])
    frames = to_frames(video)
    assert frames.shape == (5, 4, 6, 3)
    assert frames[0, 0, 0].tolist() == [0, 128, 255]
    assert strip(frames).size == (30, 4)
    assert strip(frames, most=2).size == (12, 4)
