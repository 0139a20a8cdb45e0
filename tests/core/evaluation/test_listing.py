"""What of a folder is evaluated, and that what is not is named and counted."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.samples import digest, pair, read_reference, read_samples
from selfnpo_core.sampling.medium import Medium
from selfnpo_core.system.pictures import MOVING, SUFFIXES, frame_files, is_moving, read_picture


def frames_of(path: Path) -> np.ndarray:
    files = frame_files(path) if path.is_dir() else []
    if not path.is_dir() and path.suffix.lower() == ".mp4":
        return np.full((2, 4, 4, 3), 90, np.uint8)
    return np.stack([np.asarray(read_picture(file)) for file in files]) if files else np.full((2, 4, 4, 3), 9, np.uint8)


PICTURES = Medium(unit="picture", suffixes=SUFFIXES, read=lambda path: np.array(read_picture(path))[None])
CLIPS = Medium(
    unit="clip",
    suffixes=frozenset({".mp4", *MOVING, ""}),
    read=frames_of,
    is_one=lambda path: path.suffix.lower() not in MOVING or is_moving(path),
)


SHADES: Iterator[int] = iter(range(40, 250))
"""No two pictures are alike."""


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"heic": "png", "png": "png"}.get(path.suffix[1:].lower())
    Image.new("RGB", (4, 4), (next(SHADES),) * 3).save(path, format=kind)


def moving(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    some = [Image.new("RGB", (4, 4), (next(SHADES),) * 3) for _ in range(2)]
    some[0].save(path, save_all=True, append_images=some[1:], lossless=True)


def text(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no sample")


def test_pictures_of_every_suffix_in_every_case(tmp_path: Path) -> None:
    suffixes = ("png", "PNG", "JPEG", "JPG", "jpe", "bmp", "tiff", "TIF", "webp", "gif", "ppm")
    for number, suffix in enumerate(suffixes * 2):
        picture(tmp_path / ("." if number < 11 else "deep/er") / f"{number}.{suffix}")
    for name in ("a.HEIC", "b.heic", "notes.txt", "deep/README", "deep/.DS_Store", ".cache/a.png"):
        text(tmp_path / name)
    found = read_reference(tmp_path, PICTURES)
    assert len(found.good) == 22
    assert found.passed_over == {".heic": 2, ".txt": 1, "without a suffix": 1}
    assert found.remarks("picture") == [
        f"{tmp_path}: passed over 2 .heic, 1 .txt, 1 without a suffix, which are no pictures that can be read"
    ]


def test_folders_that_are_links_are_read_once(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "real")
    assert [sample.path.name for sample in read_reference(tmp_path / "real", PICTURES).good] == ["a.png"]


def test_clips_are_files_animations_and_folders_of_frames(tmp_path: Path) -> None:
    text(tmp_path / "a.MP4")
    for name in ("b.gif", "c.WEBP", "d.png"):
        moving(tmp_path / name)
    for number in (1, 2, 10):
        picture(tmp_path / "frames" / f"{number}.jpg")
        picture(tmp_path / "more" / "webp" / f"{number}.webp")
    for name in ("frames/times.txt", "frames/sound.wav"):
        text(tmp_path / name)
    picture(tmp_path / "poster.png")
    picture(tmp_path / "poster.jpg")
    found = read_reference(tmp_path, CLIPS)
    named = {str(sample.path.relative_to(tmp_path)): sample.shape[0] for sample in found.good}
    assert named == {"a.MP4": 2, "b.gif": 2, "c.WEBP": 2, "d.png": 2, "frames": 3, "more/webp": 3}
    assert found.passed_over == {".txt": 1, ".wav": 1, ".png": 1, ".jpg": 1}


def test_nothing_to_read_says_what_there_is(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    with pytest.raises(
        InputError, match=r"holds no clip, but 3 \.png: give a folder with .*; a clip's frames in a folder"
    ):
        read_reference(tmp_path, CLIPS)


def arm(path: Path, names: list[str], shade: int = 100) -> Path:
    path.mkdir()
    lines = [{"file": name, "prompt": f"p{i}", "seed": i} for i, name in enumerate(names)]
    for i, name in enumerate(names):
        Image.new("RGB", (4, 4), (max(0, shade - 100 * i),) * 3).save(path / name)
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_arms_name_what_lies_beside_their_samples(tmp_path: Path) -> None:
    one, other = arm(tmp_path / "a", ["0.PNG", "1.tiff"]), arm(tmp_path / "b", ["0.PNG", "1.tiff"], 200)
    text(one / "notes.md")
    picture(one / "grids" / "a.png")
    both = read_samples(one, PICTURES), read_samples(other, PICTURES)
    assert [len(samples.good) for samples in both] == [2, 2]
    paired, _, _ = pair(*both, allow_different=False)
    assert paired.passed_over == {".md": 1, "folder": 1}
    picture(one / "2.JPG")
    assert [problem.file for problem in read_samples(one, PICTURES).problems] == ["2.JPG"]


def test_black_frames_are_told_of(tmp_path: Path) -> None:
    samples = read_samples(arm(tmp_path / "a", ["0.png", "1.png"]), PICTURES)
    assert [sample.black for sample in samples.good] == [0, 1]
    assert samples.black == 1
    assert "1 of 2 pictures hold frames that are all black" in samples.remarks("picture")[0]


def test_other_frames_are_another_sample(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "real" / "clip" / f"{number}.png")
    before = digest(read_reference(tmp_path / "real", CLIPS).good)
    text(tmp_path / "real" / "clip" / ".DS_Store")
    assert digest(read_reference(tmp_path / "real", CLIPS).good) == before
    picture(tmp_path / "real" / "clip" / "3.bmp")
    assert digest(read_reference(tmp_path / "real", CLIPS).good) != before
