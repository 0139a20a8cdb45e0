"""A table of prompts with a first frame a row: each row's own is used, or the table is refused in one line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.tiny import cogvideox

from selfnpo_core.commands.running import run
from selfnpo_core.models.prompts import picture_column
from selfnpo_video.cli import selfnpo_video
from selfnpo_video.families import find_base
from selfnpo_video.prompts import load_prompts
from selfnpo_video.sampling import first_frames
from selfnpo_video.video_files import read_video

SIZE = ("--format", "frames", "--frames", "9", "--height", "64", "--width", "64", "--steps", "1", "--device", "cpu")
TWO = [{"prompt": "ein Bär", "image": "one.png"}, {"prompt": "a fox", "image": "more/two.png"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image-to-video model."""
    path = tmp_path_factory.mktemp("models") / "tiny-i2v"
    cogvideox("5b-i2v").save_pretrained(path)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two pictures of different sizes, one of them in a folder below."""
    numbers = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for name, side in (("one.png", 64), ("more/two.png", 48)):
        Image.fromarray(numbers.integers(0, 256, (side, side, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def table(place: Path, rows: list[dict[str, object]]) -> Path:
    (place / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place / "p.jsonl"


def sample(model: Path, output: Path, *words: object) -> int:
    asked = ["sample", "--model", model, "--output", output, *SIZE, *words]
    return run(selfnpo_video, [str(word) for word in asked], name="selfnpo-video")


def frames(folder: Path) -> list[np.ndarray]:
    return [read_video(clip)[0].astype(int) for clip in sorted(folder.glob("0*"))]


def test_each_row_has_its_own_first_frame(model: Path, place: Path) -> None:
    """The clips are those of each prompt alone with its picture as --image; the folder is gone on with likewise."""
    words = ("--prompts", table(place, TWO), "--batch-size", "2")
    assert sample(model, place / "out", *words) == 0
    records = [json.loads(line) for line in (place / "out/metadata.jsonl").read_text().splitlines()]
    assert [Path(record["image"]) for record in records] == [place / str(row["image"]) for row in TWO]
    assert len({record["image_sha256"] for record in records}) == 2
    made = frames(place / "out")
    for seed, row in enumerate(TWO):
        alone = ("--prompt", row["prompt"], "--image", place / str(row["image"]), "--seed", seed)
        assert sample(model, place / f"alone-{seed}", *alone) == 0
        assert np.abs(frames(place / f"alone-{seed}")[0] - made[seed]).max() <= 2  # in a batch or not
    assert np.abs(made[0] - made[1]).max() > 20
    shutil.rmtree(place / "out/00001-1.frames")
    assert sample(model, place / "out", *words) == 0
    assert np.abs(frames(place / "out")[1] - made[1]).max() <= 2


@pytest.mark.parametrize("column", ["image", "Image_Path", "image_name", " first_frame"])
def test_the_column_and_several_clips_a_row(model: Path, place: Path, column: str) -> None:
    rows = [{"prompt": row["prompt"], column: row["image"]} for row in TWO]
    options = {"prompts": str(table(place, rows)), "image": None, "count": 2}
    chosen = picture_column(options["prompts"])
    assert chosen == column
    found = first_frames(find_base(str(model)), options, chosen, 4)
    assert found == [place / str(row["image"]) for row in TWO for _ in range(2)]


CASES = {
    "one for all as well": (TWO, ("--image", "{place}/one.png"), "--image is a first frame for all, and the column"),
    "a row without": ([TWO[0], {"prompt": "a fox"}], (), "line 2 in 'image' of the prompts file .* is empty"),
    "null": ([TWO[0], {"prompt": "a fox", "image": None}], (), "line 2 in 'image' .* is empty"),
    "not there": ([{"prompt": "a", "image": "none.png"}], (), "line 1 in 'image' .* is none.png, and there is no /"),
    "a folder": ([{"prompt": "a", "image": "more"}], (), "is more, and there is no"),
    "an address": ([{"prompt": "a", "image": "https://x.org/a.png"}], (), "https://x.org/a.png, which is not fetched"),
    "data": ([{"prompt": "a", "image": "data:image/png;base64,iVBO"}], (), "which is not fetched"),
    "an object": ([{"prompt": "a", "image": {"path": "one.png"}}], (), "is dict, not a path"),
    "several": ([{"prompt": "a", "image": ["one.png", "more/two.png"]}], (), "is list, not a path"),
    "no picture": ([{"prompt": "a", "image": "p.jsonl"}], (), "p.jsonl cannot be read as a picture"),
    "none at all": ([{"prompt": "a"}], (), "or a column 'image' in a table of prompts"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_each_rows_own_is_refused(model: Path, place: Path, case: str, capsys) -> None:
    rows, words, told = CASES[case]
    words = tuple(word.format(place=place) for word in words)
    assert sample(model, place / "out", "--prompts", table(place, rows), *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfnpo-video: error:")]
    assert re.search(told, line)
    assert not (place / "out").exists()


def test_text_to_video_says_that_it_takes_none(small: Path, place: Path, caplog) -> None:
    """Pictures that are not used need not be there."""
    shutil.rmtree(place / "more")
    with caplog.at_level("INFO"):
        assert sample(small, place / "out", "--prompts", table(place, TWO)) == 0
    assert "column 'image' of" in caplog.text
    assert "is not used, as model" in caplog.text


def test_of_two_columns_the_other_is_named(place: Path, caplog) -> None:
    rows = [{"prompt": "a fox", "image": "one.png", "first_frame": "more/two.png"}]
    with caplog.at_level("INFO"):
        assert load_prompts(str(table(place, rows)), "x", apart=("image",)) == ["a fox"]
    assert "not used: first_frame (" in caplog.text


def test_arms_with_other_first_frames_are_no_pair(model: Path, place: Path, capsys) -> None:
    for name in ("one.png", "more/two.png"):
        words = ("--prompts", table(place, [{"prompt": "a fox", "image": name}]))
        assert sample(model, place / Path(name).stem, *words) == 0
    asked = ["evaluate", str(place / "one"), "--against", str(place / "two"), "--metrics", "motion"]
    assert run(selfnpo_video, [*asked, "--json", str(place / "f.json")], name="selfnpo-video") == 2
    assert "differ in image_sha256" in capsys.readouterr().err
