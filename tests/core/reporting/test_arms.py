"""Folders of samples as a report's arms: paired, hashed, and with figures of exactly these bytes."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.core.reporting.pages import PICTURES, evaluate, shades

from selfnpo_core.errors import InputError
from selfnpo_core.reporting.arms import Arms, Told, conditions, gather, groups, is_compared, read_arms, title, warnings
from selfnpo_core.reporting.figures import read_figures

NEW, OLD = [200, 10, 60, 90], [100, 40, 60, 80]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return shades(tmp_path, "new", NEW), shades(tmp_path, "old", OLD)


def read(folders: tuple[Path, Path]) -> Arms:
    return read_arms(*folders, PICTURES)


def test_samples_are_paired_without_being_opened(folders: tuple[Path, Path]) -> None:
    (folders[0] / "00001-71.png").write_bytes(b"no picture, but bytes have a hash")
    (folders[1] / "00003-73.png").unlink()
    arms = read(folders)
    assert arms.other is not None
    assert [sample.seed for sample in arms.one.good] == [sample.seed for sample in arms.other.good] == [70, 71, 72]
    assert arms.alone == 1
    assert title(arms) == "new against old"
    assert any("Without a partner" in line for line in warnings(arms, Told()))


def test_folders_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    pair = shades(tmp_path / "a", "same", NEW), shades(tmp_path / "b", "same", OLD)
    assert read(pair).names.sides == [str(pair[1]), str(pair[0])]
    with pytest.raises(InputError, match="are one folder: give two"):
        read((pair[0], pair[0]))


def test_a_folder_of_both_arms_is_taken_whole(tmp_path: Path) -> None:
    shades(tmp_path / "both", "with", NEW)
    assert not is_compared(tmp_path / "both")
    shades(tmp_path / "both", "without", OLD)
    assert is_compared(tmp_path / "both")
    arms = read_arms(tmp_path / "both", None, PICTURES)
    assert title(arms) == "both: with against without"
    with pytest.raises(InputError, match="holds both arms already"):
        read_arms(tmp_path / "both", tmp_path / "both" / "with", PICTURES)


def test_samples_from_elsewhere_are_not_shown(tmp_path: Path) -> None:
    folder = shades(tmp_path, "new", NEW)
    (tmp_path / "secret.png").write_bytes(b"somebody's")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    record = json.loads(lines[0]) | {"file": "../secret.png"}
    (folder / "metadata.jsonl").write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    arms = read_arms(folder, None, PICTURES)
    assert [problem.file for problem in arms.one.problems if "names no file of this folder" in problem.reason] == [
        "../secret.png"
    ]
    assert {sample.path.parent for sample in arms.one.good} == {arms.one.path}


def test_figures_belong_by_the_bytes_and_in_either_direction(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(*folders, tmp_path / "figures.json")
    for pair, change in ((folders, 20.0), (folders[::-1], -20.0)):
        told = gather(read(pair), {})
        assert told.evaluated is not None
        assert told.metrics["red"].change is not None
        assert told.metrics["red"].change.value == pytest.approx(change)
    Image.new("RGB", (32, 32)).save(folders[0] / "00000-70.png")
    assert gather(read(folders), {}).evaluated is None
    with pytest.raises(InputError, match="is of other samples"):
        gather(read(folders), {"figures.json": read_figures(tmp_path / "figures.json")})


def test_cards_follow_the_scores_in_the_order_of_the_samples(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(*folders, tmp_path / "figures.json")
    arms = read(folders)
    found, why = groups(arms, gather(arms, {}), PICTURES, by="red", most=2, seed=0)
    assert why is None
    gains = next(cards for group, cards in found if group.title == "Largest gains")
    assert [card.seed for card in gains] == [70, 73]
    assert [name for name, _ in gains[0].sides] == ["old", "new"]
    assert ("red", ["100", "200", "+100"]) in [(name, list(cells)) for name, cells in gains[0].scores]


def test_conditions_are_one_value_or_one_an_arm(tmp_path: Path) -> None:
    arms = read((shades(tmp_path, "new", NEW, guidance_scale=3.0), shades(tmp_path, "old", OLD, guidance_scale=5.0)))
    told = {name: list(values) for name, values in conditions(arms)}
    assert told["pairs"] == ["4, of 4 prompts, seeds 70 to 73"]
    assert told["guidance scale"] == ["5", "3"]
    assert told["steps"] == ["20"]
