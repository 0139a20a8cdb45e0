"""`selfnpo-video report`: clips loop in the page by themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.core.reporting.pages import Page

from selfnpo_core.commands.running import run
from selfnpo_video.cli import selfnpo_video
from selfnpo_video.video_files import write_video


def draw(folder: Path, shade: int) -> Path:
    """Two clips of nine frames in which something moves, and a folder of frames."""
    folder.mkdir()
    lines = []
    for index, suffix in enumerate((".mp4", ".mp4", "")):
        frames = np.full((9, 48, 64, 3), shade, np.uint8)
        for time, frame in enumerate(frames):
            frame[10:30, 4 * time : 4 * time + 20] = (250, 120, 10)
        name = f"{index:05d}-{index}{suffix}"
        write_video(folder / name, frames, fps=4, format=None if suffix else "frames")
        lines.append(json.dumps({"file": name, "prompt": f"something {index}", "seed": index, "fps": 4}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def report(*words: object) -> int:
    return run(selfnpo_video, ["report", *map(str, words)], name="selfnpo-video")


def test_clips(tmp_path: Path) -> None:
    new, old = draw(tmp_path / "new", 90), draw(tmp_path / "old", 200)
    assert report(new, "--against", old) == 0
    page = Page((new / "report.html").read_text(encoding="utf-8"))
    assert page.outside == []
    assert [clip.n_frames for clip in page.pictures] == [9] * 6
    assert {clip.info["duration"] for clip in page.pictures} == {250}
    assert page.pictures[0].convert("RGB").getpixel((60, 40))[0] == pytest.approx(200, abs=8)  # the other arm first
    assert page.pictures[1].convert("RGB").getpixel((60, 40))[0] == pytest.approx(90, abs=8)


def test_a_clip_that_is_cut_off_is_named(tmp_path: Path) -> None:
    folder = draw(tmp_path / "new", 90)
    whole = (folder / "00001-1.mp4").read_bytes()
    (folder / "00001-1.mp4").write_bytes(whole[: len(whole) // 2])
    assert report(folder, "--output", tmp_path / "r.html") == 0
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(page.pictures) == 2
    assert "00001-1.mp4 is cut off" in page.text
