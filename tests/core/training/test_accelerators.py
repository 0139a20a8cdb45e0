"""What a recipe asks of Accelerate and the optimizer: engines, learning rates, seeds."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe
from tests.tools.launching import environment, free_port

from selfnpo_core import InputError
from selfnpo_core.training import build_recipe, train
from selfnpo_core.training.accelerators import learning_rate_at, make_accelerator, seed_for


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"engine": "zero2"}, "engine zero2"),
        ({"mixed_precision": "fp16"}, "fp16 needs a CUDA GPU"),
        ({"device": "cuda"}, "device is cuda, and there is no CUDA GPU: use auto or cpu"),
        ({"optimizer": "adamw8bit"}, "pip install bitsandbytes"),
        ({"trackers": ["trackio"]}, "pip install trackio"),
    ],
)
def test_what_cannot_run_here_is_said_before_anything_starts(changes, word, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=word):
        make_accelerator(toy_recipe(**changes))


def test_a_run_on_a_gpu_that_is_not_there_writes_nothing(tmp_path):
    with pytest.raises(InputError, match="there is no CUDA GPU"):
        train(ToyBackbone(), toy_recipe(device="cuda"), PROMPTS, tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["auto", "ddp"])
def test_torchrun_may_start_one_process(tmp_path, engine):
    """Which makes the very run that one without a launcher makes."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port", str(free_port())]
    start = [sys.executable, *launcher, "--module", "tests.core.training.launched", str(tmp_path / "launched"), engine]
    done = subprocess.run(
        start, cwd=Path(__file__).parents[3], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train(ToyBackbone(), toy_recipe(), PROMPTS, tmp_path / "plain", progress=False)
    files = [tmp_path / run / "npo/pytorch_lora_weights.safetensors" for run in ("launched", "plain")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_learning_rate_warms_up_and_then_follows_its_schedule():
    recipe = build_recipe({"learning_rate": 1.0, "warmup_steps": 3, "steps": 11, "lr_schedule": "linear"})
    rates = [learning_rate_at(step, recipe) for step in range(1, 12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([1 - k / 8 for k in range(1, 8)])
    cosine = recipe.model_copy(update={"lr_schedule": "cosine", "warmup_steps": 0})
    assert learning_rate_at(1, cosine) == 1.0
    assert learning_rate_at(11, cosine) == pytest.approx(0.0203, abs=1e-4)
    assert learning_rate_at(11, recipe.model_copy(update={"lr_schedule": "constant"})) == 1.0


def test_seeds_of_neighbours_differ():
    seeds = {seed_for(seed, rank, step) for seed in range(5) for rank in range(5) for step in range(5)}
    assert len(seeds) == 125
