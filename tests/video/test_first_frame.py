"""A picture becomes a clip's first frame: cut, whole, or stretched because that was asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.tiny import cogvideox
from tests.video.planning import planned

from selfnpo_core.sampling.sample_folder import read_records
from selfnpo_video import sampling
from selfnpo_video.families import find_base
from selfnpo_video.first_frame import FITS, fitted, size_from
from selfnpo_video.shapes import ClipSize

SIZE = ClipSize(frames=9, height=64, width=64)


def wide() -> Image.Image:
    """192×64: red, white and blue squares."""
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, :64, 0] = pixels[:, 64:128] = pixels[:, 128:, 2] = 255
    return Image.fromarray(pixels)


def test_a_picture_is_cut_padded_or_stretched() -> None:
    made = {fit: np.asarray(fitted(wide(), SIZE, fit)).astype(int) for fit in FITS}
    assert {pixels.shape for pixels in made.values()} == {(64, 64, 3)}
    assert made["crop"].min() > 250  # the square amid
    assert made["pad"][:20].max() == made["pad"][44:].max() == 0
    for name, rows in (("pad", slice(24, 40)), ("stretch", slice(0, 64))):
        thirds = [made[name][rows, at].mean(axis=0).tolist() for at in (10, 32, 54)]
        assert np.allclose(thirds, [[255, 0, 0], [255, 255, 255], [0, 0, 255]], atol=3)


def test_a_picture_of_the_clips_shape_stays_as_it_is() -> None:
    picture = Image.effect_noise((64, 64), 50).convert("RGB")
    for fit in FITS:
        assert np.array_equal(np.asarray(fitted(picture, SIZE, fit)), np.asarray(picture))


@pytest.mark.parametrize(
    ("picture", "given", "size"),
    [
        ((1920, 1080), (None, None), (768, 1360)),
        ((1080, 1920), (None, None), (1360, 768)),
        ((512, 512), (None, None), (768, 768)),
        ((1200, 900), (None, None), (768, 1024)),
        ((4000, 1000), (None, None), (768, 1360)),
        ((1200, 900), (480, None), (480, 640)),
        ((1200, 900), (None, 640), (480, 640)),
    ],
)
def test_a_clip_of_one_and_a_half_has_the_shape_of_its_picture(picture: Any, given: Any, size: Any) -> None:
    base = find_base("cogvideox-1.5-5b-i2v")
    found = size_from(Image.new("RGB", picture), base.size, base.compression, given)
    assert (found.frames, found.height, found.width) == (81, *size)
    base.compression.check(found)


def test_a_model_of_one_size_keeps_it() -> None:
    base = find_base("cogvideox-5b-i2v")
    assert size_from(Image.new("RGB", (500, 900)), base.size, base.compression, (None, None)) == base.size


@pytest.mark.parametrize(
    ("words", "fit", "said"),
    [
        ((), "crop", "67% of it is cut off (--fit crop; also pad, stretch)"),
        (("--fit", "pad"), "pad", "67% of each frame is black"),
        (("--fit", "stretch"), "stretch", "stretched by 200%"),
    ],
)
def test_the_model_is_given_the_fitted_picture(
    tmp_path: Path, caplog: Any, monkeypatch: Any, words: Any, fit: str, said: str
) -> None:
    cogvideox("5b-i2v").save_pretrained(tmp_path / "model")
    wide().save(tmp_path / "first.png")
    asked = ["--model", tmp_path / "model", "--image", tmp_path / "first.png", "--steps", 1, "--device", "cpu", *words]
    job = planned(*asked)
    assert said in caplog.text
    prepared, given = job.load(), []
    preprocess = prepared.pipe.video_processor.preprocess

    def recorded(image: Any, **options: Any) -> Any:
        given.extend(image)
        return preprocess(image, **options)

    monkeypatch.setattr(prepared.pipe.video_processor, "preprocess", recorded)
    sampling.draw_into(prepared, job, tmp_path / "clips")
    assert [np.array_equal(np.asarray(picture), np.asarray(fitted(wide(), SIZE, fit))) for picture in given] == [True]
    assert [record["fit"] for record in read_records(tmp_path / "clips" / "metadata.jsonl")] == [fit]


def test_a_picture_of_nearly_the_clips_shape_is_not_spoken_of(tmp_path: Path, caplog: Any) -> None:
    cogvideox("5b-i2v").save_pretrained(tmp_path / "model")
    Image.new("RGB", (1000, 1005)).save(tmp_path / "first.png")
    planned("--model", tmp_path / "model", "--image", tmp_path / "first.png", "--device", "cpu")
    assert "first frame" not in caplog.text
