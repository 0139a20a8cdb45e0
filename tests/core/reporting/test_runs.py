"""A training run as a report: what it says of runs that are whole, cut short or damaged, and whose figures it takes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.core.reporting.pages import evaluate, shades
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core.errors import InputError
from selfnpo_core.reporting.runs import curves, facts, grids, measured, read_run, result, warnings
from selfnpo_core.system.files import file_sha256
from selfnpo_core.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    train(ToyBackbone(), toy_recipe(sample_every=2), PROMPTS, output, progress=False)
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_in_a_few_lines(run: Path) -> None:
    read = read_run(run)
    told = dict(facts(read))
    assert told["updates"] == "4 of 4, finished"
    assert told["checkpoints"] == "step-000002, step-000004"
    assert "median" in told["seconds an update"]
    of_npo = dict(result(read))
    assert file_sha256(run / "npo/pytorch_lora_weights.safetensors")[:16] in of_npo["file"]
    assert of_npo["what"].startswith("LoRA of rank 4")
    assert len(curves(read)) == 3
    assert [name for name, _ in grids(read)] == ["update 4", "update 2"]
    assert warnings(read, None) == []


def test_finished_samples_stand_where_a_teacher_would(run: Path) -> None:
    read = read_run(run)
    changes = {"rollout": "samples", "loss": "denoising", "samples": 20}
    changed = replace(read, recipe=toy_recipe(**changes))
    assert dict(facts(read))["objective"] == "tdft, pool rollout, teacher guidance -1"
    assert dict(facts(changed))["objective"] == "tdft, samples rollout, 20 finished samples, loss denoising"
    rounds = replace(read, recipe=toy_recipe(**changes, rounds=2))
    assert "20 finished samples in each of 2 rounds, loss" in dict(facts(rounds))["objective"]
    ends = replace(read, recipe=toy_recipe(pool_target="endpoint", advance_guidance=1.0))
    assert dict(facts(ends))["objective"] == "tdft, pool rollout, its endpoints at guidance 1, loss huber"


def test_what_a_kill_or_nan_left_is_said(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    spoilt = json.loads(lines[1]) | {"loss": float("nan"), "skipped": 1}
    (run / "metrics.jsonl").write_text("\n".join([lines[0], json.dumps(spoilt), '{"step": 3, "lo']))
    shutil.rmtree(run / "npo")
    read = read_run(run)
    assert [update["step"] for update in read.updates] == [1, 2]
    told = dict(facts(read))
    assert told["updates"] == "2 of 4, not finished"
    assert told["skipped"].startswith("1 updates")
    assert result(read) == []
    assert len(warnings(read, None)) == 2
    (run / "metrics.jsonl").unlink()
    assert curves(read_run(run)) == []


def test_figures_are_taken_of_these_very_weights(run: Path, tmp_path: Path) -> None:
    own = file_sha256(run / "npo/pytorch_lora_weights.safetensors")
    new = shades(tmp_path, "drawn", [200, 10, 60], npo="run/npo/w", npo_sha256=own, beta=0.5)
    old = shades(tmp_path, "plain", [100, 40, 60], npo=None, npo_sha256=None, beta=None)
    for pair in ((new, old), (old, new)):  # whichever came first
        evaluate(*pair, run / "figures.json")
        found = measured(read_run(run), ())
        assert found is not None
        assert found.evaluated.folder.path == str(new)
        assert found.names.sides == ["without", "with"]
        assert ("beta", ["—", "0.5"]) in [(name, list(values)) for name, values in found.conditions]
    with pytest.raises(InputError, match="takes one --figures"):
        measured(read_run(run), ("a", "b"))
    other = shades(tmp_path, "other", [1, 2, 3], npo="elsewhere", npo_sha256="0" * 64, beta=1.0)
    evaluate(other, old, run / "figures.json")
    assert measured(read_run(run), ()) is None
    with pytest.raises(InputError, match="of the weights in"):
        measured(read_run(run), (str(run / "figures.json"),))


def test_figures_of_the_weights_against_themselves_say_nothing(run: Path, tmp_path: Path) -> None:
    own = file_sha256(run / "npo/pytorch_lora_weights.safetensors")
    arms = [shades(tmp_path, name, [1, 2, 3], npo="w", npo_sha256=own, beta=0.5) for name in ("one", "two")]
    evaluate(*arms, run / "figures.json")
    assert measured(read_run(run), ()) is None
