"""Clips beside each other: strips, pairs, grids, and the page that plays them."""

import numpy as np

from selfnpo_core.training.pictures import strip
from selfnpo_video.sheets import INDEX, beside, grid, write_sheet


def clip(frames: int, tone: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((frames, height, width, 3), tone, np.uint8)


def test_a_strip_has_up_to_so_many_frames():
    frames = clip(9, 0)
    assert strip(frames).size == (30, 4)
    assert strip(frames, most=2).size == (12, 4)
    assert strip(frames[:3]).size == (18, 4)


def test_the_shorter_clip_of_a_pair_stays_at_its_last_frame():
    left = np.concatenate([clip(1, 0, 64, 64), clip(1, 200, 64, 64)])
    frames = list(beside(left, clip(4, 90, 64, 64), ("one", "other"), "a caption"))
    assert len(frames) == 4
    assert not np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[1], frames[3])
    assert not any(side % 2 for side in frames[0].shape[:2])


def test_a_grid_is_as_long_as_its_shortest_clip():
    frames = list(grid([clip(3, 0, 33, 33), clip(2, 90, 33, 33)], ["one", "other"], 2, "a caption"))
    assert len(frames) == 2
    assert not any(side % 2 for side in frames[0].shape[:2])


def test_a_page_shows_every_kind_of_file_and_escapes_words(tmp_path):
    write_sheet(tmp_path, [("a <b> heading", [("a.mp4", "x & y"), ("b.webp", ""), ("folder", "")])])
    assert [path.name for path in tmp_path.iterdir()] == [INDEX]
    page = (tmp_path / INDEX).read_text(encoding="utf-8")
    assert "a &lt;b&gt; heading" in page
    assert "x &amp; y" in page
    assert [page.count(tag) for tag in ('<video src="a.mp4"', '<img src="b.webp"', 'src="folder/00000.png"')] == [1] * 3
