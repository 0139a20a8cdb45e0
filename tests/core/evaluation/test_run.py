"""`evaluate`: what is asked for, what is refused before a network is loaded, and what is written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.core.reporting.pages import METRICS, NETWORK, OFFERED, PICTURES, evaluate, shades

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.metrics import Metric
from selfnpo_core.evaluation.run import MetricSet, choose
from selfnpo_core.evaluation.run import evaluate as measured

NEW, OLD = [200, 10, 60, 90, 120, 90], [100, 40, 60, 80, 120, 90]
"""Redness: gains of pairs 0 and 3, a loss of pair 1."""


@pytest.fixture
def arms(tmp_path: Path) -> tuple[Path, Path]:
    return shades(tmp_path, "new", NEW), shades(tmp_path, "old", OLD)


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    given = {"folder": folder, "against": None, "metrics": "red", "reference": None, "weights": None, "cache": None}
    given |= {"skip_bad": False, "allow_different": False, "batch_size": None, "device": "cpu", "json": None}
    return {**given, **changes}


def test_scores_of_single_samples_are_kept(arms: tuple[Path, Path], tmp_path: Path) -> None:
    stored = evaluate(*arms, tmp_path / "f.json")
    scores = stored["per_sample"]
    assert (stored["schema"], scores["value"]["red"], scores["against"]["red"]) == (1, NEW, OLD)
    assert scores["value_files"] == [f"{n:05d}-{70 + n}.png" for n in range(6)]
    lines = (tmp_path / "f.json").read_text().splitlines()
    assert sum("per_sample" in line and line.endswith("}") for line in lines) == 1  # however many there are
    alone = evaluate(arms[0], None, tmp_path / "g.json")["per_sample"]
    assert set(alone) == {"value", "value_files", "value_sha256"}


def test_names_are_chosen_once_and_groups_stand_for_several() -> None:
    others = {"counted": lambda options: lambda folders: {"counted": {"count": len(folders.one.good)}}}
    offered = MetricSet(metrics=lambda options: METRICS, groups={"colours": ("blue", "red")}, others=others)
    chosen, own = choose(offered, {"metrics": " red,colours, ,counted"})
    assert [metric.name for metric in chosen] == ["red", "blue"]
    assert len(own) == 1
    with pytest.raises(InputError, match="unknown metric 'green': use red, blue, colours, counted"):
        choose(offered, {"metrics": "red,green"})
    for nothing in (None, " , "):
        with pytest.raises(InputError, match="nothing to measure"):
            choose(offered, {"metrics": nothing})


def test_figures_of_two_arms_are_of_the_same_rows(arms: tuple[Path, Path], tmp_path: Path) -> None:
    results = measured(OFFERED, PICTURES, options(arms[0], against=arms[1], json=tmp_path / "f.json"))
    red = results["metrics"]["red"]
    assert red["value"][0] == pytest.approx(sum(NEW) / 6)
    assert red["change"][0] == pytest.approx((sum(NEW) - sum(OLD)) / 6)
    assert red["win_rate"][0] == pytest.approx((2 + 3 / 2) / 6)
    assert json.loads((tmp_path / "f.json").read_text()) == json.loads(json.dumps(results))


def test_results_say_what_read_the_files_and_what_was_passed_over(
    arms: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    (arms[0] / "thumbnails.db").write_bytes(b"")
    results = measured(OFFERED, replace(PICTURES, reader=lambda: "a reader 1.2"), options(arms[0]))
    assert results["reader"] == "a reader 1.2"
    assert results["folder"]["passed_over"] == {".db": 1}
    assert results["folder"]["with_black_frames"] == 0
    assert f"{arms[0]}: passed over 1 .db" in caplog.text


def test_what_cannot_be_measured_is_refused_before_a_network_is_loaded(arms: tuple[Path, Path], tmp_path: Path) -> None:
    def never(places, device):
        raise AssertionError("a network was loaded")

    blind = NETWORK.__class__(
        name="blind", model="m", preprocessing="", library="", load=never, refuses=lambda sample: "it is too red"
    )
    needs = MetricSet(metrics=lambda options: [Metric(name="fid", kind="frechet", network=blind)], groups={})
    with pytest.raises(InputError, match=r"fid compares with real data.*--reference DIR"):
        measured(needs, PICTURES, options(arms[0], metrics="fid"))
    refused = MetricSet(metrics=lambda options: [Metric(name="hue", kind="score", network=blind)], groups={})
    with pytest.raises(InputError, match=r"hue cannot be measured of .*00000-70\.png: it is too red"):
        measured(refused, PICTURES, options(arms[0], metrics="hue"))
    for json_ in (tmp_path, tmp_path / "no" / "such.json"):
        with pytest.raises(InputError, match="cannot be written"):
            measured(OFFERED, PICTURES, options(arms[0], json=json_))


def test_bad_files_are_named_or_left_out(arms: tuple[Path, Path]) -> None:
    (arms[0] / "00002-72.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"00002-72\.png: .*--skip-bad"):
        measured(OFFERED, PICTURES, options(arms[0], against=arms[1]))
    results = measured(OFFERED, PICTURES, options(arms[0], against=arms[1], skip_bad=True))
    assert results["metrics"]["red"]["count"] == 5
    assert [skipped["file"] for skipped in results["skipped"]][:1] == ["00002-72.png"]


def test_only_the_first_process_has_results(arms: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert measured(OFFERED, PICTURES, options(arms[0])) is None
    assert list(arms[0].rglob("toy-*/*.safetensors"))  # what it looked at, for the first one
