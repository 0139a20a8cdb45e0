"""Which samples are shown, on scores made for it."""

from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_core.reporting.figures import Evaluated
from selfnpo_core.reporting.selection import choose, choose_score, gains
from selfnpo_core.reporting.shown import CLIP_EDGE, EDGE, FRAMES, _moving_mean, shown, some
from selfnpo_core.sampling.medium import Medium

ARM = {"path": "x", "samples": 5, "made": {}}
FILES = [f"{n}.png" for n in range(5)]


def evaluated(*, paired: bool = True, **scores: tuple[str, list, list]) -> Evaluated:
    """scores: a metric's better direction, and its two arms' scores."""
    per_sample = {"value": {n: s[1] for n, s in scores.items()}, "value_files": FILES, "value_sha256": ""}
    if paired:
        other = {"against": {n: s[2] for n, s in scores.items()}, "against_files": FILES, "against_sha256": ""}
        per_sample |= other
    metrics = {name: {"better": s[0], "count": 5} for name, s in scores.items()}
    against = ARM if paired else None
    stored = {"schema": 1, "folder": ARM, "against": against, "metrics": metrics, "per_sample": per_sample}
    return Evaluated.model_validate(stored)


RIGHT = ("higher", [1, 1, 0, 1, 0], [0, 1, 1, 1, 0])
LIKED = ("higher", [5.0, 1.0, 2.0, 7.0, None], [1.0, 2.0, 2.0, 4.0, 3.0])


def test_gains_and_losses() -> None:
    found = evaluated(liked=LIKED)
    assert gains(found, "liked") == [4, -1, 0, 3, None]
    groups = choose(5, gains(found, "liked"), score="liked", most=3, seed=0, paired=True)
    assert [(g.title, list(g.rows)) for g in groups[:2]] == [("Largest gains", [0, 3]), ("Largest losses", [1])]
    assert "2 of 4 pairs" in groups[0].about
    less = evaluated(error=("lower", *LIKED[1:]))
    assert gains(less, "error") == [-4, 1, 0, -3, None]
    groups = choose(5, gains(less, "error"), score="error", most=1, seed=0, paired=True)
    assert [list(g.rows) for g in groups[:2]] == [[1], [0]]


def test_of_one_arm_the_best_and_the_worst() -> None:
    found = evaluated(paired=False, liked=LIKED)
    groups = choose(5, gains(found, "liked"), score="liked", most=2, seed=0, paired=False)
    assert [(g.title, list(g.rows)) for g in groups[:2]] == [("Best", [3, 0]), ("Worst", [1, 2])]


def test_random_ones_are_of_all_and_by_the_seed() -> None:
    drawn = {tuple(choose(50, None, score=None, most=4, seed=seed, paired=True)[0].rows) for seed in range(40)}
    assert len(drawn) > 30
    assert {row for rows in drawn for row in rows} > set(range(40))
    again = [choose(50, None, score=None, most=4, seed=7, paired=True)[-1].rows for _ in range(2)]
    assert again[0] == again[1]
    assert len(choose(3, None, score=None, most=4, seed=0, paired=True)[0].rows) == 3


def test_the_score_that_is_chosen_by() -> None:
    found = evaluated(motion=("neither", *LIKED[1:]), right=RIGHT, liked=LIKED)
    assert choose_score(found, None) == ("liked", None)
    assert choose_score(found, "motion") == ("motion", None)
    assert choose_score(evaluated(right=RIGHT), None) == ("right", None)
    assert choose_score(evaluated(motion=("neither", *LIKED[1:])), None)[0] is None
    assert "no score" in str(choose_score(None, None)[1])
    old = evaluated(right=RIGHT).model_copy(update={"per_sample": None})
    assert choose_score(old, None) == (None, "The figures hold no scores of single samples to choose by.")
    for figures, words in ((found, "use motion, right, liked"), (old, "no figures with scores")):
        with pytest.raises(InputError, match=words):
            choose_score(figures, "fid")


def test_pictures_are_bounded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 500, 900, 3), dtype=np.uint8)
    media = {n: Medium(unit="", suffixes=frozenset(), read=lambda path, n=n: noise[:n]) for n in (1, 60)}
    picture, clip = (shown(tmp_path, each, 8) for each in media.values())
    assert (picture.width, picture.height) == (EDGE, round(EDGE * 5 / 9))
    assert clip.width == CLIP_EDGE
    assert not clip.is_small
    with Image.open(BytesIO(b64decode(clip.uri.partition(",")[2]))) as read:
        assert (read.format, read.n_frames, read.info["loop"]) == ("WEBP", FRAMES, 0)
        lasts = []
        for frame in range(read.n_frames):
            read.seek(frame)
            read.load()
            lasts.append(read.info["duration"])
        assert sum(lasts) == pytest.approx(1000 * 60 / 8, abs=FRAMES)
    pixels = noise[:1, :32, :32]
    small = shown(tmp_path, Medium(unit="", suffixes=frozenset(), read=lambda path: pixels))
    with Image.open(BytesIO(b64decode(small.uri.partition(",")[2]))) as read:
        assert (np.asarray(read.convert("RGB")) == pixels[0]).all()  # without loss
    assert small.is_small


def test_means_and_spread() -> None:
    assert _moving_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
    assert some(list("abcdefgh"), 3) == ["a", "e", "h"]  # type: ignore[list-item]
    assert some(list("ab"), 3) == ["a", "b"]  # type: ignore[list-item]
    assert some([], 3) == []
