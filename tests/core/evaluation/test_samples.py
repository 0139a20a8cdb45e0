"""Sample folders that are whole, damaged, unequal and different."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.samples import Samples, pair, read_reference, read_samples, refuse_bad
from selfnpo_core.sampling.medium import Medium


def read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))[None]
    except Exception:
        raise InputError(f"{path} is no picture") from None


MEDIA = Medium(unit="picture", suffixes=frozenset({".png"}), read=read)


def folder(path: Path, count: int = 4, *, shade: int = 0, first: int = 0, size: int = 6, **more: Any) -> Path:
    """`count` grey pictures of the prompts "p0", … with seeds 10, …."""
    path.mkdir()
    lines = []
    for i in range(first, first + count):
        name = f"{i:05d}-{10 + i}.png"
        Image.new("RGB", (size, size), (shade + i,) * 3).save(path / name)
        lines.append({"file": name, "prompt": f"p{i}", "seed": 10 + i, "steps": 25, "scheduler": "DDIM", **more})
    rewrite(path, lines)
    return path


def rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def seeds(samples: Samples) -> list[int | None]:
    return [sample.seed for sample in samples.good]


def reasons(samples: Samples) -> dict[str, str]:
    return {problem.file: problem.reason for problem in samples.problems}


def test_a_whole_folder(tmp_path: Path) -> None:
    samples = read_samples(folder(tmp_path / "a", guidance_scale=3.0), MEDIA)
    assert seeds(samples) == [10, 11, 12, 13]
    assert not samples.problems
    assert samples.good[0].shape == (1, 6, 6)
    assert len({sample.sha256 for sample in samples.good}) == 4
    assert samples.model == {"steps": 25, "scheduler": "DDIM", "guidance_scale": 3.0}


def test_everything_wrong_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", 6)
    (path / "00001-11.png").write_bytes((path / "00001-11.png").read_bytes()[:40])
    (path / "00002-12.png").unlink()
    lines = lines_of(path)
    del lines[3]["prompt"]
    del lines[4]
    rewrite(path, lines)
    samples = read_samples(path, MEDIA)
    assert seeds(samples) == [10, 15]
    found = reasons(samples)
    assert found["00001-11.png"] == "is no picture"
    assert found["00002-12.png"] == "the file is missing"
    assert "no prompt or seed" in found["00003-13.png"]
    assert "no line" in found["00004-14.png"]
    with pytest.raises(InputError, match=r"00003-13.png.* and 1 more: mend the folder, or give --skip-bad"):
        refuse_bad([samples], skip=False)
    assert len(refuse_bad([samples], skip=True)) == 4


@pytest.mark.parametrize("what", ["none", "empty", "twice"])
def test_folders_without_samples(tmp_path: Path, what: str) -> None:
    path = folder(tmp_path / "a")
    if what == "none":
        (path / "metadata.jsonl").unlink()
        with pytest.raises(InputError, match=r"no metadata.jsonl"):
            read_samples(path, MEDIA)
    elif what == "twice":
        rewrite(path, [{**line, "prompt": "p", "seed": 1} for line in lines_of(path)])
        with pytest.raises(InputError, match="two samples of one prompt and seed"):
            read_samples(path, MEDIA)
    else:
        rewrite(path, [])
        with pytest.raises(InputError, match="no sample that can be read"):
            refuse_bad([read_samples(path, MEDIA)], skip=True)
    with pytest.raises(InputError, match="is no folder"):
        read_samples(tmp_path / "gone", MEDIA)


def test_pairs_in_the_same_order_whatever_the_files_are_called(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", shade=100)
    lines = lines_of(b)
    for line, number in zip(lines, (3, 1, 0, 2), strict=True):
        (b / line["file"]).rename(b / f"x{number}.png")
        line["file"] = f"x{number}.png"
    rewrite(b, lines)
    one, other, different = pair(read_samples(a, MEDIA), read_samples(b, MEDIA), allow_different=False)
    assert seeds(one) == seeds(other) == [10, 11, 12, 13]
    assert not different
    assert not one.problems + other.problems


def test_a_bad_sample_is_dropped_on_both_sides(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    (a / "00001-11.png").write_bytes(b"")
    (b / "00002-12.png").write_bytes(b"")
    one, other, different = pair(read_samples(a, MEDIA), read_samples(b, MEDIA), allow_different=False)
    assert seeds(one) == seeds(other) == [10, 13]
    assert not different
    assert set(reasons(one)) == {"00001-11.png"}
    assert set(reasons(other)) == {"00002-12.png"}


def test_an_unequal_count_is_a_problem_of_those_without_a_partner(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 4), folder(tmp_path / "b", 3)
    one, other, different = pair(read_samples(a, MEDIA), read_samples(b, MEDIA), allow_different=False)
    assert seeds(one) == seeds(other) == [10, 11, 12]
    assert not different
    assert "no sample of its prompt and seed" in reasons(one)["00003-13.png"]
    assert not other.problems


def test_samples_without_prompts_on_both_sides_are_not_taken_for_other_prompts(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    rewrite(a, lines_of(a)[1:])
    rewrite(b, lines_of(b)[:-1])
    one, other, different = pair(read_samples(a, MEDIA), read_samples(b, MEDIA), allow_different=False)
    assert seeds(one) == seeds(other) == [11, 12]
    assert not different


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 50}, r"steps \(25 and 50\)"),
        ({"scheduler": "Euler"}, "scheduler"),
        ({"size": 8}, "frames×height×width"),
        ({"first": 1}, "prompts"),
    ],
)
def test_what_differs_is_named_and_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    a = read_samples(folder(tmp_path / "a"), MEDIA)
    b = read_samples(folder(tmp_path / "b", **changes), MEDIA)
    with pytest.raises(InputError, match=f"differ in {named}"):
        pair(a, b, allow_different=False)
    one, other, different = pair(a, b, allow_different=True)
    assert len(different) == 1
    assert seeds(one) == seeds(other) == ([11, 12, 13] if "first" in changes else [10, 11, 12, 13])


def test_other_seeds_and_no_pairs_at_all(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    rewrite(b, [{**line, "seed": line["seed"] + 100} for line in lines_of(b)])
    both = read_samples(a, MEDIA), read_samples(b, MEDIA)
    with pytest.raises(InputError, match="differ in seeds"):
        pair(*both, allow_different=False)
    with pytest.raises(InputError, match="share no prompt and seed"):
        pair(*both, allow_different=True)


def test_a_reference_needs_no_metadata(tmp_path: Path) -> None:
    path = folder(tmp_path / "real")
    (path / "metadata.jsonl").unlink()
    folder(path / "more", 2, shade=50)
    (path / ".hidden").mkdir()
    (path / ".hidden" / "a.png").write_bytes(b"")
    assert len(read_reference(path, MEDIA).good) == 6
    (path / "00000-10.png").write_bytes(b"")
    assert list(reasons(read_reference(path, MEDIA))) == ["00000-10.png"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        read_reference(tmp_path / "nothing", MEDIA)


@pytest.mark.parametrize("name", ["{folder}/00001-11.png", "./00001-11.png", "../a/00001-11.png", "x//y.png", ".", ""])
def test_a_record_that_names_no_file_of_the_folder(tmp_path: Path, name: str) -> None:
    a = folder(tmp_path / "a", count=3)
    lines = lines_of(a)
    rewrite(a, [lines[0], {**lines[1], "file": name.format(folder=a)}, lines[2]])
    samples = read_samples(a, MEDIA)
    assert seeds(samples) == [10, 12]
    assert "metadata.jsonl names no file of this folder" in reasons(samples).values()
    with pytest.raises(InputError, match="names no file of this folder"):
        refuse_bad([samples], skip=False)
