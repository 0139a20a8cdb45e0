"""Files of figures: whose they are, which are damaged, and how they are turned."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.reporting.figures import (
    Evaluated,
    Study,
    figures_in,
    kind_of,
    read_compared,
    read_figures,
    read_json_object,
)


def evaluated(**changes: Any) -> dict[str, Any]:
    folder = {"path": "with", "samples": 2, "made": {"npo_sha256": "a"}}
    red = {"better": "higher", "count": 2, "value": [3, 2, 4], "against": [1, 0, 2], "change": [2, 1, 3.5]}
    distance = {"better": "lower", "count": 2, "value": [3, 2, 4], "against": [1, 0, 2], "change": [2, 1, 3]}
    distance |= {"limit": {"infinity": 1.5}, "against_limit": None}
    scores = {"value": {"red": [4, 2]}, "value_files": ["0.png", "1.png"], "value_sha256": "x"}
    scores |= {"against": {"red": [1, None]}, "against_files": ["2.png", "3.png"], "against_sha256": "y"}
    metrics = {"red": {**red, "win_rate": [0.9, 0.6, 0.95]}, "fid": distance}
    made = {"schema": 1, "folder": folder, "against": {**folder, "path": "without"}, "metrics": metrics}
    return {**made, "per_sample": scores, **changes}


def study() -> dict[str, Any]:
    people = {"counted": 3, "finished": 2, "excluded": 1}
    return {"schema": 1, "arms": {"a": "one", "b": "two"}, "pairs": 2, "participants": people, "questions": []}


def write(path: Path, stored: Any) -> Path:
    path.write_text(json.dumps(stored))
    return path


def test_turning_twice_is_as_before() -> None:
    figures = Evaluated.model_validate(evaluated())
    turned = figures.turned()
    assert turned.folder.path == "without"
    red, fid = turned.metrics["red"], turned.metrics["fid"]
    assert (red.value, red.against) == ((1, 0, 2), (3, 2, 4))
    assert red.change == (-2, -3.5, -1)
    assert red.win_rate == pytest.approx((0.1, 0.05, 0.4))
    assert fid.limit is None
    assert fid.against_limit is not None
    assert (red.is_biased, fid.is_biased) == (False, True)
    assert turned.per_sample is not None
    assert turned.per_sample.value == {"red": [1, None]}
    again = turned.turned()
    assert again.per_sample == figures.per_sample
    assert again.metrics["red"].win_rate == pytest.approx(figures.metrics["red"].win_rate)
    assert again.metrics["fid"] == figures.metrics["fid"]


def test_scores_are_one_a_file(tmp_path: Path) -> None:
    stored = evaluated()
    stored["per_sample"]["value"]["red"].append(5)
    with pytest.raises(InputError, match=r"damaged or of another version .*3 scores red of 2 files"):
        read_figures(write(tmp_path / "f.json", stored))


@pytest.mark.parametrize("stored", [[], "text", {"schema": 1}, {"schema": 1, "judged": 0}])
def test_other_json_holds_no_figures(stored: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no figures"):
        read_figures(write(tmp_path / "f.json", stored))


def test_another_version_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(schema: .*write it anew"):
        read_figures(write(tmp_path / "f.json", evaluated(schema=2)))
    with pytest.raises(InputError, match="cannot be read"):
        read_json_object(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"schema": 1,')
    with pytest.raises(InputError, match="is damaged, it is no JSON"):
        read_json_object(tmp_path / "cut.json")


def test_a_folders_figures_come_newest_first(tmp_path: Path) -> None:
    for age, (name, stored) in enumerate([("b", study()), ("a", evaluated()), ("c", {"schema": 1}), ("d", [])]):
        os.utime(write(tmp_path / f"{name}.json", stored), (1000 - age, 1000 - age))
    (tmp_path / "folder.json").mkdir()
    found = [(file.name, type(figures)) for file, figures in figures_in(tmp_path)]
    assert found == [("b.json", Study), ("a.json", Evaluated)]
    assert [kind_of(each) for each in (study(), evaluated(), {"schema": 1, "judged": 2}, {})] == [
        "study",
        "evaluate",
        "compare",
        None,
    ]


def test_what_compare_wrote_is_read_as_figures() -> None:
    arm = {"fid": [3.0, 2.0, 4.0], "accuracy": [0.5, 0.4, 0.6], "by_attribute": {"colour": 1.0}}
    change = {"fid_change": [1.0, 0.5, 1.5], "win_rate": [0.6, 0.5, 0.7]}
    found, note = read_compared({"schema": 1, "judged": 4, "with": arm, "without": arm, "change": change})
    assert note is None
    assert found.keys() == {"fid", "accuracy", "preference"}
    assert (found["fid"].better, found["fid"].is_biased) == ("lower", True)
    assert (found["accuracy"].better, found["accuracy"].is_biased) == ("higher", False)
    assert found["accuracy"].change is None
    assert found["preference"].win_rate == (0.6, 0.5, 0.7)
    assert read_compared({"judged": 0, "note": "no captions"}) == ({}, "no captions")
