"""What is saved and drawn with is the average of the weights in training, and training does not see it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.core.training.engines import engine
from tests.core.training.test_resume import assert_same_run
from tests.core.training.test_samples import CHANGES
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core.ema import power_decay
from selfnpo_core.training import train

AVERAGED = {**CHANGES, "steps": 6, "average": 0.2, "checkpoint_every": 2}
KINDS = [{"targets": "all"}, {"train": "full", "learning_rate": 1e-3}]


def saved(run):
    (file,) = (run / "npo").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.15, 0.28])
def test_the_power_functions_profile_is_as_wide_as_asked_and_begins_as_a_copy(width):
    """Weights of update t in the average of update n: their mean and spread, as shares of n."""
    weights, steps = torch.zeros(4000, dtype=torch.float64), 4000
    for step in range(1, steps + 1):
        decay = power_decay(step, width)
        weights *= decay
        weights[step - 1] = 1 - decay
    assert power_decay(1, width) == 0
    assert float(weights.sum()) == pytest.approx(1)
    at = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    mean = float((weights * at).sum())
    assert float((weights * (at - mean).square()).sum()) ** 0.5 == pytest.approx(width, rel=0.01)
    power = (weights[-1].log() - weights[steps // 2 - 1].log()) / torch.tensor(2.0).log()
    assert mean == pytest.approx(float((power + 1) / (power + 2)), rel=0.01)  # of t^γ


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "full"])
def test_what_is_saved_is_the_average_and_training_goes_on_as_without(tmp_path, kind):
    with engine(**{**AVERAGED, **kind, "rollout": "full"}) as made:
        assert made.recipe.averaging is None
    train(ToyBackbone(), toy_recipe(**{**AVERAGED, **kind}), PROMPTS, tmp_path / "with", progress=False)
    plain = toy_recipe(**{**AVERAGED, **kind, "average": None})
    train(ToyBackbone(), plain, PROMPTS, tmp_path / "without", progress=False)
    students, expected = [], None
    for step in range(1, 7):
        short = plain.model_copy(update={"steps": step})
        train(ToyBackbone(), short, PROMPTS, tmp_path / f"{step}", progress=False)
        students.append({name: tensor.double() for name, tensor in saved(tmp_path / f"{step}").items()})
        decay = power_decay(step, 0.2)
        expected = {
            name: tensor if expected is None else decay * expected[name] + (1 - decay) * tensor
            for name, tensor in students[-1].items()
        }
    for name, tensor in saved(tmp_path / "with").items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=2e-2, atol=1e-6)  # offsets are in bfloat16
    assert any(
        not torch.equal(tensor, saved(tmp_path / "without")[name]) for name, tensor in saved(tmp_path / "with").items()
    )
    rows = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("with", "without")
    ]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "full"])
def test_a_run_that_gets_more_updates_is_the_one_that_had_them_from_the_start(tmp_path, kind):
    whole = toy_recipe(**{**AVERAGED, **kind})
    train(ToyBackbone(), whole, PROMPTS, tmp_path / "whole", progress=False)
    train(ToyBackbone(), whole.model_copy(update={"steps": 3}), PROMPTS, tmp_path / "parts", progress=False)
    train(ToyBackbone(), whole, PROMPTS, tmp_path / "parts", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 6)
    for name, tensor in saved(tmp_path / "whole").items():
        assert torch.equal(tensor, saved(tmp_path / "parts")[name])


def test_samples_and_later_rounds_are_drawn_with_the_average(tmp_path):
    backbone = ToyBackbone()
    changes = {**AVERAGED, "targets": "all", "rounds": 2, "samples": 10, "recommended": {"beta": 0.5}}
    train(backbone, toy_recipe(**changes), PROMPTS, tmp_path / "with", progress=False)
    other = ToyBackbone()
    train(other, toy_recipe(**{**changes, "average": None}), PROMPTS, tmp_path / "without", progress=False)
    sizes = [{size for size, beta in of.drawn_with if beta == 0.5} for of in (backbone, other)]
    assert len(sizes[0]) == len(sizes[1]) == 1
    assert 0 < sizes[0].pop() < sizes[1].pop()  # it lags behind


@pytest.mark.parametrize("train_", ["lora", "full"])
def test_numbers_change_places_and_back(train_):
    with engine(train=train_, ema_decay=0.5) as made:
        list(made.updates())
        student = {name: p.detach().clone() for name, p in made.student.parameters.items()}
        teacher = {name: p.detach().clone() for name, p in made.student.teacher.items()}
        with made.student.averaged():
            assert all(torch.equal(p, teacher[name]) for name, p in made.student.parameters.items())
        assert all(torch.equal(p, student[name]) for name, p in made.student.parameters.items())
        assert all(torch.equal(p, teacher[name]) for name, p in made.student.teacher.items())
