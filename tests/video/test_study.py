"""Clips in a study: checked, stripped, damaged; and shown, with ranges, by the page."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from starlette.testclient import TestClient

from selfnpo_core.errors import InputError
from selfnpo_core.study.pairs import check_samples, read_pairs
from selfnpo_core.study.server import Copies, Page, application
from selfnpo_core.study.votes import Votes
from selfnpo_video.medium import clips
from selfnpo_video.video_files import read_video, write_video


def draw(path: Path, shade: int) -> Path:
    """9 frames with a square that moves."""
    frames = np.full((9, 48, 64, 3), 90, np.uint8)
    for k in range(9):
        frames[k, 12:36, 4 * k : 4 * k + 24] = (shade, 180, 40)
    write_video(path, frames, fps=8)
    return path


def test_a_shown_clip_is_its_frames_only(tmp_path: Path) -> None:
    plain = draw(tmp_path / "x.mp4", 220)
    told = tmp_path / "told.mp4"
    words = ["-c", "copy", "-metadata", "comment=negative weights 1.0"]
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-i", plain, *words, told], check=True)
    assert b"negative weights" in told.read_bytes()
    clips().plain(told, tmp_path / "y.mp4")
    assert b"negative weights" not in (tmp_path / "y.mp4").read_bytes()
    assert np.array_equal(read_video(tmp_path / "y.mp4")[0], read_video(plain)[0])
    assert clips().size(plain) == (64, 48)


def test_a_damaged_clip_is_seen_to_be_worse(tmp_path: Path) -> None:
    clear = draw(tmp_path / "x.mp4", 220)
    clips().damage(clear, tmp_path / "y.mp4")
    (frames, fps), (damaged, damaged_fps) = read_video(clear), read_video(tmp_path / "y.mp4")
    assert damaged.shape == frames.shape
    assert damaged_fps == pytest.approx(fps)
    assert np.abs(damaged.astype(int) - frames).mean() > 12


def test_clips_that_cannot_be_used(tmp_path: Path) -> None:
    clip = draw(tmp_path / "x.mp4", 220)
    clip.write_bytes(clip.read_bytes()[:900])
    with pytest.raises(InputError, match="cut off"):
        clips().size(clip)


def test_the_page_shows_clips(tmp_path: Path) -> None:
    folders = {"a": tmp_path / "with", "b": tmp_path / "without"}
    for shade, folder in zip((220, 20), folders.values(), strict=True):
        folder.mkdir()
        draw(folder / "00000-7.mp4", shade)
        record = {"file": "00000-7.mp4", "prompt": "a square", "seed": 7, "steps": 5, "fps": 8}
        (folder / "metadata.jsonl").write_text(json.dumps(record) + "\n")
    pairs = read_pairs(folders, clips())
    check_samples(pairs, clips())
    study = {"pairs": 1, "seed": 0, "attention_checks": 0, "questions": [["q", "Which?"]]}
    votes = Votes.open(tmp_path / "v.sqlite", study)
    (tmp_path / "aside").mkdir()
    page = Page(votes, Copies(pairs=pairs, medium=clips(), folder=tmp_path / "aside"), {"a": "1", "b": "2"}, None)
    client = TestClient(application(page, link_token=None), base_url="http://localhost")
    text = client.post("/participants").text
    assert "autoplay loop muted playsinline" in text
    shown = votes.next_trial(0, 1)
    for token, arm in ((shown.left_token, shown.trial.left), (shown.right_token, shown.trial.right)):
        address = next(part for part in text.split('"') if part.endswith(token))
        answer = client.get(address, headers={"Range": "bytes=0-"})
        assert (answer.status_code, answer.headers["content-type"]) == (206, "video/mp4")
        (tmp_path / "got.mp4").write_bytes(answer.content)
        red = int(read_video(tmp_path / "got.mp4")[0][0, 24, 12, 0])
        assert (red > 120) == (arm == "a")
