"""`report` of folders of samples and of a training run: what is on the page, whose figures, and what is refused."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.core.reporting.pages import Page, evaluate, report, shades
from tests.core.study.drawn import draw_arm
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.sample_folder import SampleFolder, read_records
from selfnpo_core.system.files import file_sha256
from selfnpo_core.training import train

NEW, OLD = [200, 10, 60, 90, 120, 90], [100, 40, 60, 80, 120, 90]
"""Redness: gains of pairs 0 and 3, a loss of pair 1."""


@pytest.fixture
def arms(tmp_path: Path) -> tuple[Path, Path]:
    return shades(tmp_path, "new", NEW), shades(tmp_path, "old", OLD)


def section(html: str, title: str) -> Page:
    start = html.index(f"<h2>{title}</h2>")
    return Page(html[start : html.index("</section>", start)])


def test_two_folders(arms: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(*arms, tmp_path / "figures.json")
    html = report(arms[0], against=arms[1], markdown=tmp_path / "r.md")
    page = Page(html)
    assert page.outside == []
    assert "script" not in page.tags
    assert len(page.pictures) == 2 * (2 + 1 + 6)
    gains, losses = section(html, "Largest gains"), section(html, "Largest losses")
    assert gains.text.index("square <0> seed 70") < gains.text.index("square <3> seed 73")
    assert "red 100 200 +100" in gains.text
    assert [picture.getpixel((0, 0))[0] for picture in gains.pictures] == [100, 200, 80, 90]
    assert [picture.getpixel((0, 0))[0] for picture in losses.pictures] == [40, 10]
    assert "6 of 6 pairs" in section(html, "At random").text
    assert "from “old” to “new”, within its 95 % interval" in page.text
    assert "6, of 6 prompts, seeds 70 to 75" in page.text
    told = (tmp_path / "r.md").read_text()
    assert "| red ↑ | 81.7 " in told
    assert "data:" not in told


def test_figures_taken_the_other_way_round_are_turned(arms: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(*arms[::-1], tmp_path / "figures.json")
    html = report(arms[0], against=arms[1])
    assert "red 100 200 +100" in section(html, "Largest gains").text
    assert "+13.3 [" in Page(html).text
    assert "−13.3 [" in Page(report(arms[1], against=arms[0])).text


def test_figures_of_other_bytes_are_not_these(arms: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(*arms, tmp_path / "figures.json")
    Image.new("RGB", (32, 32), "red").save(arms[0] / "00004-74.png")
    html = report(arms[0], against=arms[1])
    assert "no figures of these samples are at hand" in Page(html).text
    assert "so there is no score of a single sample to choose by" in Page(html).text
    assert "Largest gains" not in html
    with pytest.raises(InputError, match="is of other samples"):
        report(arms[0], against=arms[1], figures=(tmp_path / "figures.json",))
    with pytest.raises(InputError, match="is of other samples"):
        report(arms[0], figures=(tmp_path / "figures.json",))


def test_figures_of_an_earlier_version(arms: tuple[Path, Path], tmp_path: Path) -> None:
    stored = evaluate(*arms, tmp_path / "figures.json")
    del stored["per_sample"]
    (tmp_path / "figures.json").write_text(json.dumps(stored))
    page = Page(report(arms[0], against=arms[1]))
    assert "+13.3 [" in page.text
    assert "The figures hold no scores of single samples" in page.text
    assert "of an earlier version" in page.text


def test_what_is_wrong_with_the_folders_is_said(tmp_path: Path) -> None:
    one, other = draw_arm(tmp_path / "one", 4, 250), draw_arm(tmp_path / "other", 3, 5, steps=50)
    (one / "00002-72.png").write_bytes(b"no picture")
    evaluate(one, other, tmp_path / "f.json", skip_bad=True, allow_different=True)
    html = report(one, against=other, figures=(tmp_path / "f.json",))
    mind = section(html, "Mind").text
    assert "differ in steps (20 and 50)" in mind
    assert "so left out: 1 samples" in mind
    assert "Left out of the figures" in mind
    assert "00002-72.png is no picture" in section(html, "At random").text


def test_a_score_that_is_asked_for(arms: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(*arms, tmp_path / "figures.json")
    with pytest.raises(InputError, match="--by fid is not among the scores: use red, blue"):
        report(arms[0], against=arms[1], by="fid")
    shutil.copy(tmp_path / "figures.json", tmp_path / "again.json")
    with pytest.raises(InputError, match="several --figures are by evaluate"):
        report(arms[0], against=arms[1], figures=(tmp_path / "figures.json", tmp_path / "again.json"))


def test_one_folder(arms: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(arms[0], None, tmp_path / "figures.json")
    html = report(arms[0], count=2)
    assert [p.getpixel((0, 0))[0] for p in section(html, "Best").pictures] == [200, 120]
    assert [p.getpixel((0, 0))[0] for p in section(html, "Worst").pictures] == [10, 60]
    assert "alone it says nothing of a change" in Page(html).text
    rose = report(arms[0], count=1, by="blue")
    assert "By blue." in section(rose, "Best").text


def compared(root: Path) -> Path:
    """As `compare` leaves a folder of the demo's model."""
    folder = root / "pairs"
    arms = shades(folder, "with", NEW, npo="n"), shades(folder, "without", OLD, npo=None)
    for record in read_records(arms[0] / "metadata.jsonl"):
        shutil.copy(arms[0] / record["file"], folder)
    shutil.copy(arms[0] / "metadata.jsonl", folder)
    metrics = {
        "schema": 1,
        "judged": 6,
        "with": {"accuracy": [0.9, 0.8, 1], "fid": [3.0, 2.0, 4.0], "by_attribute": {"colour": 1}},
        "without": {"accuracy": [0.5, 0.4, 0.6], "fid": [9.0, 8.0, 10.0], "by_attribute": {"colour": 0.5}},
        "change": {"accuracy_change": [0.4, 0.2, 0.6], "fid_change": [-6, -8, -4], "win_rate": [0.5, 0.3, 0.7]},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_a_compare_folder(tmp_path: Path) -> None:
    folder = compared(tmp_path)
    page = Page(report(folder))
    assert "pairs: with against without" in page.text
    assert "accuracy: +0.4 [+0.2, +0.6] from “without” to “with”, beyond its 95 % interval and so better" in page.text
    assert "fid: −6 [−8, −4] from “without” to “with”, beyond its 95 % interval and so better" in page.text
    assert "preference: with wins 50.0 % [30.0, 70.0] of the pairs, within" in page.text
    assert "fid of 6 samples is mostly bias" in page.text
    assert len(page.pictures) == 12
    evaluate(folder / "with", folder / "without", folder / "figures.json")
    html = report(folder)
    assert "red 100 200 +100" in section(html, "Largest gains").text
    assert "accuracy" not in Page(html).text  # the newest figures, which have scores
    records = read_records(folder / "metadata.jsonl")
    with SampleFolder(folder, records, beside=("with", "without", "metrics.json")) as again:
        assert again.missing == []  # `compare` goes on beside a report


def test_prompts_are_text(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script><img src="http://x/y.png" onerror=x> \ud800'
    folder = draw_arm(tmp_path / "<b>arm", 2, 9)
    lines = [
        json.dumps({**r, "prompt": f"{evil} {r['seed']}", "model": evil})
        for r in read_records(folder / "metadata.jsonl")
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    page = Page(report(folder, markdown=tmp_path / "r.md"))
    assert page.outside == []
    assert "script" not in page.tags
    assert page.text.count('<script>alert("1")</script>') == 3
    assert "<b>arm" in page.text
    assert "<script" not in (tmp_path / "r.md").read_text()


def test_votes_of_these_folders(arms: tuple[Path, Path], tmp_path: Path) -> None:
    question = {"key": "q", "text": "Which <i>?", "votes": 9, "wins": 9, "ties": 0, "losses": 0, "alpha": None}
    question |= {"win_rate": 1.0, "wilson": [0.7, 1.0], "bootstrap": None}
    study: dict[str, Any] = {
        "schema": 1,
        "arms": {"a": "x/new", "b": "x/old"},
        "pairs": 3,
        "participants": {"counted": 3, "finished": 3, "excluded": 1},
        "questions": [question],
    }
    (tmp_path / "votes.json").write_text(json.dumps(study))
    page = Page(report(arms[0], against=arms[1]))
    assert "“Which <i>?” A (x/new) is preferred to B (x/old) in 100.0 % [70.0, 100.0] of 9 votes" in page.text
    study["arms"]["b"] = "x/another"
    (tmp_path / "votes.json").write_text(json.dumps(study))
    assert "Which" not in Page(report(arms[0], against=arms[1])).text


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("gone", {}, "gone is no folder"),
        ("empty", {}, "neither a run nor a folder of samples"),
        ("new", {"against": "empty"}, "has no metadata.jsonl"),
        ("new", {"against": "new/../new"}, "are one folder"),
        ("pairs", {"against": "old"}, "holds both arms already"),
        ("new", {"figures": ("gone.json",)}, "gone.json cannot be read"),
        ("new", {"figures": ("damaged.json",)}, "damaged.json is damaged, it is no JSON"),
        ("new", {"figures": ("list.json",)}, "holds no figures"),
        ("new", {"figures": ("other.json",)}, "other.json is damaged or of another version (metrics.red.count"),
        ("new", {"figures": ("short.json",)}, "per_sample has 1 scores red of 2 files"),
        ("new", {"figures": ("strange.json",)}, "per_sample has green, which is no metric"),
        ("new", {"figures": ("one-arm.json",)}, "per_sample is not of these arms"),
        ("elsewhere", {}, "metadata.jsonl names no file of this folder"),
        ("new", {"by": "red"}, "no figures with scores of single samples"),
        ("new", {"output": "mine.html"}, "mine.html is no report, and is not written over"),
        ("new", {"markdown": "mine.html"}, "mine.html is no report"),
        ("new", {"output": "gone/r.html"}, "a folder that is there"),
        ("new", {"output": "empty"}, "cannot be written"),
        ("new", {"output": "r", "markdown": "empty/../r"}, "give two files"),
        ("pairs", {"figures": ("damaged.json",)}, "is no JSON"),
        ("half", {}, "metrics.json is damaged (KeyError)"),
    ],
)
def test_mistakes(
    arms: tuple[Path, Path], tmp_path: Path, monkeypatch, folder: str, options: Mapping[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    compared(tmp_path)
    shutil.copytree("pairs", "half")
    Path("half/metrics.json").write_text('{"schema": 1, "judged": 3}')
    Path("empty").mkdir()
    Path("damaged.json").write_text('{"schema": 1, ')
    Path("list.json").write_text("[]")
    arm = {"path": "new", "samples": 1, "made": {}}
    figures: dict[str, Any] = {"schema": 1, "folder": arm, "against": None, "metrics": {"red": {"count": "many"}}}
    Path("other.json").write_text(json.dumps(figures))
    figures |= {"metrics": {}, "per_sample": {"value": {"red": [1]}, "value_files": ["a", "b"], "value_sha256": ""}}
    Path("short.json").write_text(json.dumps(figures))
    scores = {"value": {"green": [1]}, "value_files": ["a"], "value_sha256": ""}
    Path("strange.json").write_text(json.dumps({**figures, "per_sample": scores}))
    scores["value"] = {}
    Path("one-arm.json").write_text(json.dumps({**figures, "against": arm, "per_sample": scores}))
    Path("elsewhere").mkdir()
    record = {"file": "../new/00000-70.png", "prompt": "a", "seed": 1}
    Path("elsewhere/metadata.jsonl").write_text(json.dumps(record))
    Path("mine.html").write_text("<!doctype html><p>my notes on selfnpo report")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        report(Path(folder), **{k: v if k in ("figures", "by") else Path(v) for k, v in options.items()})
    assert message in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_own_report_is_written_over(arms: tuple[Path, Path], tmp_path: Path) -> None:
    first = report(arms[0], markdown=tmp_path / "r.md")
    assert report(arms[0], markdown=tmp_path / "r.md") == first
    assert report(arms[0], count=1, markdown=tmp_path / "r.md") != first


# Runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    train(ToyBackbone(), toy_recipe(sample_every=2), PROMPTS, output, progress=False)
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def measured(run: Path, root: Path) -> Path:
    """Figures of samples that say that these weights drew them."""
    sha = file_sha256(run / "npo/pytorch_lora_weights.safetensors")
    new = shades(root, "drawn", NEW, npo="run/npo/w", npo_sha256=sha, beta=0.5)
    old = shades(root, "plain", OLD, npo=None, npo_sha256=None, beta=None)
    evaluate(new, old, run / "figures.json")
    return run / "figures.json"


def test_a_run(run: Path, tmp_path: Path) -> None:
    card = (run / "npo/README.md").read_text()
    html = report(run, markdown=tmp_path / "r.md")
    page = Page(html)
    assert page.outside == []
    assert page.tags.count("svg") == 3
    assert len(page.ids) == len(set(page.ids))
    assert len(page.pictures) == 2
    assert page.text.index("update 4") < page.text.index("update 2 ")
    for words in (
        "4 of 4, finished",
        "step-000002, step-000004",
        "LoRA of rank 4",
        "tdft, pool rollout",
        "learning_rate",
    ):
        assert words in page.text
    assert "no figures of these weights are at hand" in page.text
    assert "of rank 4" in (tmp_path / "r.md").read_text()
    assert (run / "npo/README.md").read_text() == card  # nothing was measured, so it claims nothing


def test_a_run_of_all_weights_is_not_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(ToyBackbone(), toy_recipe(train="full", steps=1), PROMPTS, run, progress=False)
    page = Page(report(run))
    assert "delta.safetensors, sha256" in page.text
    assert "beta 1, alpha 1, guidance scale 3 to 8, negative condition null" in page.text
    assert "of rank" not in page.text
    assert page.tags.count("svg") == 3


def test_the_model_card_says_what_was_measured(run: Path, tmp_path: Path) -> None:
    card = run / "npo/README.md"
    before = card.read_text() + "\nWhat I wrote there myself.\n"
    card.write_text(before)
    figures = measured(run, tmp_path)
    assert "from “without” to “with”, within" in Page(report(run)).text
    filled = card.read_text()
    start, end = filled.index("<!-- measured -->"), filled.index("<!-- /measured -->\n\n")
    assert "| red ↑ | 81.7 " in filled[start:end]
    assert filled[:start] + filled[end + len("<!-- /measured -->\n\n") :] == before
    report(run)
    assert card.read_text() == filled
    stored = json.loads(figures.read_text())
    stored["metrics"]["red"]["value"] = [1000.0, 900.0, 1100.0]
    figures.write_text(json.dumps(stored))
    report(run, figures=(figures,))
    again = card.read_text()
    assert again.count("## Measured") == 1
    assert "1e+03" in again
    assert "What I wrote there myself." in again
    card.write_text(filled.replace("<!-- /measured -->", ""))
    with pytest.raises(InputError, match="remove both by hand"):
        report(run)


def test_figures_of_other_weights_are_not_this_runs(run: Path, tmp_path: Path) -> None:
    figures = measured(run, tmp_path)
    stored = json.loads(figures.read_text())
    stored["folder"], stored["against"] = stored["against"], stored["folder"]
    figures.write_text(json.dumps(stored))
    assert "from “without” to “with”" in Page(report(run)).text  # whichever arm they drew
    card = (run / "npo/README.md").read_text()
    for arm in ("folder", "against"):
        stored[arm]["made"]["npo_sha256"] = "0" * 64
    figures.write_text(json.dumps(stored))
    assert "no figures of these weights are at hand" in Page(report(run)).text
    with pytest.raises(InputError, match="of the weights in"):
        report(run, figures=(figures,))
    assert (run / "npo/README.md").read_text() == card


def test_a_run_that_is_not_finished(run: Path) -> None:
    shutil.rmtree(run / "npo")
    shutil.rmtree(run / "samples")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1][:20]}")
    page = Page(report(run))
    assert "1 of 4, not finished" in page.text
    assert "no negative weights yet" in page.text
    (run / "metrics.jsonl").unlink()
    assert "0 of 4, not finished" in Page(report(run)).text


def test_mistakes_with_runs(run: Path) -> None:
    for options in ({"against": run}, {"by": "red"}):
        with pytest.raises(InputError, match="is a run: leave it out"):
            report(run, **options)
    (run / "figures.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        report(run)
    (run / "figures.json").unlink()
    os.truncate(run / "npo/pytorch_lora_weights.safetensors", 40)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        report(run)
