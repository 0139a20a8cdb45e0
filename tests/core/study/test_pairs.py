"""Two folders as pairs; folders that do not pair up are refused, and the file at fault is named."""

import json
from pathlib import Path

import pytest
import torch
from tests.core.study.drawn import MEDIUM, draw_arm, draw_folders

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.sample_folder import METADATA
from selfnpo_core.study.pairs import check_samples, digest, read_pairs, some


def refused(folders: dict, *words: str, **options: bool) -> None:
    with pytest.raises(InputError) as error:
        check_samples(read_pairs(folders, MEDIUM, **options), MEDIUM, **options)
    assert all(word in str(error.value) for word in words), str(error.value)


def rewrite(folder: Path, change) -> None:
    """change: list of records → list of records."""
    records = [json.loads(line) for line in (folder / METADATA).read_text().splitlines()]
    (folder / METADATA).write_text("".join(json.dumps(record) + "\n" for record in change(records)))


def test_pairs_go_by_prompt_and_seed_and_not_by_number(tmp_path: Path) -> None:
    folders = draw_folders(tmp_path)
    rewrite(folders["b"], lambda records: records[::-1])
    pairs = read_pairs(folders, MEDIUM)
    assert [pair.seed for pair in pairs] == [70, 71, 72, 73]
    assert all(
        pair.files["a"].name == pair.files["b"].name == f"{i:05d}-{pair.seed}.png" for i, pair in enumerate(pairs)
    )
    check_samples(pairs, MEDIUM)


def test_folders_that_do_not_pair_up(tmp_path: Path) -> None:
    folders = draw_folders(tmp_path)
    rewrite(folders["b"], lambda records: records[:-1])
    refused(folders, "has 4 samples", "blue 3", "'square <3>' with seed 73")
    rewrite(folders["b"], lambda records: [*records, {**records[0], "file": "x.png", "prompt": "other", "seed": 73}])
    refused(folders, "'square <3>' with seed 73")
    rewrite(folders["a"], lambda records: records[:-1])
    refused(folders, "'other' with seed 73")
    rewrite(folders["b"], lambda records: [*records[:3], {**records[0], "file": "00003-73.png"}])
    refused(folders, "blue has prompt 'square <0>' with seed 70 twice")
    refused({"a": folders["a"], "b": tmp_path / "red" / ".." / "red"}, "are one folder")
    refused({"a": folders["a"], "b": tmp_path / "gone"}, "gone is no folder")
    (tmp_path / "empty").mkdir()
    refused({"a": folders["a"], "b": tmp_path / "empty"}, "has no metadata.jsonl")
    (tmp_path / "empty" / METADATA).touch()
    refused({"a": folders["a"], "b": tmp_path / "empty"}, "has no samples")


@pytest.mark.parametrize(("key", "value"), [("steps", 30), ("scheduler", "Euler"), ("width", 64), ("frames", 17)])
def test_arms_drawn_otherwise_are_refused_unless_allowed(tmp_path: Path, key: str, value: object) -> None:
    folders = {"a": draw_arm(tmp_path / "a", 3, 9), "b": draw_arm(tmp_path / "b", 3, 99, **{key: value})}
    refused(folders, f"{key} {value}", "00000-70.png", "--allow-different")
    assert len(read_pairs(folders, MEDIUM, allow_different=True)) == 3


def test_what_is_compared_may_differ(tmp_path: Path) -> None:
    different = {"guidance_scale": 5.0, "npo": "x", "beta": 0.5, "model": "other", "dtype": "bf16"}
    folders = {"a": draw_arm(tmp_path / "a", 3, 9), "b": draw_arm(tmp_path / "b", 3, 99, **different)}
    assert len(read_pairs(folders, MEDIUM)) == 3


def test_two_sizes(tmp_path: Path) -> None:
    unsaid = {"width": None, "height": None}
    folders = {
        "a": draw_arm(tmp_path / "a", 2, 9, **unsaid),
        "b": draw_arm(tmp_path / "b", 2, 99, size=48, **unsaid),
    }
    refused(folders, "32 × 32", "48 × 48", "00000-70.png")
    check_samples(read_pairs(folders, MEDIUM, allow_different=True), MEDIUM, allow_different=True)


def test_files_that_are_damaged_missing_or_elsewhere(tmp_path: Path) -> None:
    folders = draw_folders(tmp_path)
    file = folders["b"] / "00001-71.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(folders, "00001-71.png is no whole picture")
    file.unlink()
    refused(folders, "00001-71.png is missing")
    (tmp_path / "secret.png").write_bytes(whole)
    file.symlink_to(tmp_path / "secret.png")
    refused(folders, "00001-71.png is a link that leads out of")
    file.unlink()
    file.symlink_to(folders["b"] / "00002-72.png")
    assert len(read_pairs(folders, MEDIUM)) == 4
    for name in ("../secret.png", str(tmp_path / "secret.png"), "sub/x.png"):
        rewrite(folders["b"], lambda records, name=name: [{**records[0], "file": name}, *records[1:]])
        refused(folders, "which is no file of that folder")
    rewrite(folders["b"], lambda records: [{**records[0], "file": "00000-70.jpg"}, *records[1:]])
    refused(folders, "takes .png files")
    rewrite(folders["b"], lambda records: [{**records[0], "file": ["00000-70.png"]}, *records[1:]])
    refused(folders, "'square <0>' with seed 70 is in the first only")
    rewrite(folders["b"], lambda records: [{"file": "00000-70.png", "seed": 70}, *records[1:]])
    refused(folders, "the line of 00000-70.png has no prompt and seed")


def test_some_pairs(tmp_path: Path) -> None:
    pairs = read_pairs(draw_folders(tmp_path, 12), MEDIUM)
    seeds = [[p.seed for p in some(pairs, 5, torch.Generator().manual_seed(seed))] for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] == sorted(seeds[0])
    assert seeds[0] != seeds[2]
    assert len(set(seeds[0])) == 5
    assert some(pairs, None, torch.Generator()) == some(pairs, 99, torch.Generator()) == pairs


def test_the_digest_tells_any_change(tmp_path: Path) -> None:
    folders = draw_folders(tmp_path)
    pairs = read_pairs(folders, MEDIUM)
    first = digest(pairs)
    assert digest(read_pairs(folders, MEDIUM)) == first
    assert digest(read_pairs({"a": folders["b"], "b": folders["a"]}, MEDIUM)) != first
    assert digest(pairs[1:]) != first
    (folders["a"] / "00002-72.png").write_bytes((folders["a"] / "00001-71.png").read_bytes())
    assert digest(pairs) != first
