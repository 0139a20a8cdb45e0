"""Samples and plots inside of a page: bounded, re-encoded, and said where they cannot be shown."""

import io
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from tests.core.reporting.pages import PICTURES

from selfnpo_core.reporting.shown import CLIP_EDGE, EDGE, FRAMES, POINTS, Shown, curve, shown, shown_grid, some
from selfnpo_core.sampling.medium import Medium


def opened(found: Shown) -> Image.Image:
    assert found.uri is not None
    return Image.open(io.BytesIO(b64decode(found.uri.removeprefix("data:image/webp;base64,"))))


def clips(frames: np.ndarray) -> Medium:
    return Medium(unit="clip", suffixes=frozenset({".mp4"}), read=lambda path: frames)


def test_a_large_picture_is_bounded_and_carries_nothing_but_pixels(tmp_path: Path) -> None:
    picture = Image.new("RGB", (1000, 500), (10, 20, 30))
    picture.save(tmp_path / "a.png", pnginfo=None, dpi=(300, 300))
    found = shown(tmp_path / "a.png", PICTURES)
    assert (found.width, found.height) == (EDGE, EDGE // 2)
    assert not found.is_small
    read = opened(found)
    assert read.size == (EDGE, EDGE // 2)
    assert not {"exif", "dpi", "icc_profile"} & read.info.keys()


def test_a_small_picture_keeps_every_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = shown(tmp_path / "a.png", PICTURES)
    assert found.is_small
    assert np.array_equal(np.asarray(opened(found).convert("RGB")), pixels)


def test_a_clip_loops_in_its_own_time_with_fewer_frames() -> None:
    frames = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 512, 64, 3), np.uint8)
    found = shown(Path("a.mp4"), clips(frames), fps=25)
    assert (found.width, found.height) == (CLIP_EDGE // 8, CLIP_EDGE)
    read = opened(found)
    durations = []
    for frame in ImageSequence.Iterator(read):
        frame.load()
        durations.append(frame.info["duration"])
    assert len(durations) == FRAMES
    assert sum(durations) == pytest.approx(4000, abs=FRAMES)
    assert read.info["loop"] == 0


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    found = shown(tmp_path / "a.png", PICTURES)
    assert (found.uri, found.problem) == (None, f"{tmp_path / 'a.png'} is no picture")
    assert f"{tmp_path / 'a.png'} cannot be read as a picture" in str(shown_grid(tmp_path / "a.png").problem)


def test_some_are_evenly_spread_with_both_ends() -> None:
    files = [Path(str(i)) for i in range(10)]
    assert some(files, 4) == [files[i] for i in (0, 3, 6, 9)]
    assert some(files[:2], 4) == files[:2]
    assert some([], 4) == []


def test_a_curve_is_an_element_of_the_page_and_the_same_every_time() -> None:
    steps, values = list(range(2000)), [1 / (1 + i) for i in range(2000)]
    svg = curve("loss", "the loss", steps, values, bound=0.5)
    assert svg == curve("loss", "the loss", steps, values, bound=0.5)
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "metadata" not in svg
    assert 'id="loss-' in svg
    assert len(curve("loss", "l", steps[:POINTS], values[:POINTS])) > 0.5 * len(svg)  # thinned to as many points
    assert svg.count("stroke-dasharray") > curve("loss", "the loss", steps, values, bound=9.0).count("stroke-dasharray")
