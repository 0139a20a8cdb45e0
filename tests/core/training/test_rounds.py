"""Rounds: samples that are drawn anew with the weights in training, and runs that are stopped at any place of them."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from tests.core.training.test_resume import assert_same_run, metrics_of, state_of
from tests.core.training.test_samples import CHANGES
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core import InputError, RunError
from selfnpo_core.system.signals import Interrupted
from selfnpo_core.training import build_recipe, samples, train
from selfnpo_core.training.samples import FinishedSamples, SamplePlan

ROUNDS = {**CHANGES, "rounds": 3, "steps": 7, "samples": 10, "recommended": {"beta": 0.5}, "checkpoint_every": 100}
STARTS = (0, 3, 5)
KINDS = [{"targets": "all"}, {"train": "full", "learning_rate": 1e-3}]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(samples, "PART_ROWS", 6)


def drawn(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "latents").rglob("*.safetensors"))
    }


def begun(folder, backbone=None, *, resume=False, **changes):
    backbone = backbone or ToyBackbone()
    train(backbone, toy_recipe(**{**ROUNDS, **changes}), PROMPTS, folder, resume=resume, progress=False)
    return backbone


def test_rounds_share_the_updates():
    recipe = toy_recipe(**ROUNDS)
    assert [recipe.round_of(step) for step in range(8)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert tuple(recipe.round_start(number) for number in range(3)) == STARTS


def test_every_round_has_its_own_seeds_and_goes_on_in_the_prompts():
    plans = [SamplePlan.of(ToyBackbone(), toy_recipe(**ROUNDS), 4, number=number) for number in range(3)]
    seeds = [seed for plan in plans for seed in plan.seeds(range(plan.count))]
    assert len(set(seeds)) == 30
    prompts = torch.cat([plan.prompts() for plan in plans])
    assert torch.equal(prompts[4:], prompts[:-4])
    assert sorted(prompts[:4].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "full"])
def test_later_rounds_are_drawn_against_the_weights_in_training(tmp_path, kind):
    backbone = begun(tmp_path / "run", **kind)
    sizes = [size for size, _ in backbone.drawn_with]
    assert [beta for _, beta in backbone.drawn_with] == [1.0] * 2 + [0.5] * 4
    assert sizes[:2] == [0, 0]
    assert 0 < sizes[2] == sizes[3] < sizes[4] == sizes[5]
    said = [
        json.loads((tmp_path / "run/latents" / place / "samples.json").read_text())
        for place in (".", "round-1", "round-2")
    ]
    assert [facts.get("round", 0) for facts in said] == [0, 1, 2]
    assert said[1]["negative_sha256"] != said[2]["negative_sha256"]


def test_a_round_s_samples_are_those_of_its_first_weights(tmp_path):
    """Drawn here by a plain loop with the npo file of a run that ended where the round began."""
    begun(tmp_path / "run", train="full")
    begun(tmp_path / "short", train="full", steps=3, rounds=1)
    delta = load_file(tmp_path / "short/npo/delta.safetensors")
    plan, backbone = SamplePlan.of(ToyBackbone(), toy_recipe(**ROUNDS), len(PROMPTS), number=1), ToyBackbone()
    backbone.embed(PROMPTS)
    texts = [PROMPTS[row] for row in plan.prompts()]
    how = {"guidance_scale": 2.0, "steps": 3}
    wanted = backbone.draw_latents(texts, plan.seeds(range(10)), **how, negative=delta, beta=0.5)
    x0, _ = FinishedSamples(tmp_path / "run/latents/round-1", plan).read(torch.arange(10))
    torch.testing.assert_close(x0, wanted, rtol=1e-5, atol=1e-5)
    plain = backbone.draw_latents(texts, plan.seeds(range(10)), **how)
    assert not torch.allclose(x0, plain, rtol=1e-4, atol=1e-4)


def test_updates_are_made_on_their_round_s_samples(tmp_path, monkeypatch):
    used = []
    read = FinishedSamples.read
    monkeypatch.setattr(FinishedSamples, "read", lambda self, rows: used.append(self.plan.round) or read(self, rows))
    begun(tmp_path / "run")
    assert used == [0, 0, 0, 1, 1, 2, 2]
    assert int(state_of(tmp_path / "run", 7)["source/used"]) == 2 * 8  # of the last round's


class Stopping(ToyBackbone):
    """Sends itself a signal in the nth forward with gradient, or while it draws the nth part."""

    def __init__(self, what: str, at: int):
        super().__init__()
        self.what, self.at, self.updates = what, at, 0

    def predict(self, x_t, t, prompt):
        if torch.is_grad_enabled():
            self.updates += 1
            if (self.what, self.at) == ("update", self.updates):
                os.kill(os.getpid(), signal.SIGTERM)
        return super().predict(x_t, t, prompt)

    def draw_latents(self, *args, **options):
        made = super().draw_latents(*args, **options)
        if (self.what, self.at) == ("part", self.parts_drawn):
            os.kill(os.getpid(), signal.SIGTERM)
        return made


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "full"])
@pytest.mark.parametrize(
    ("what", "at", "left"),
    [
        ("update", 2, 4),
        ("update", 3, 4),
        ("part", 3, 3),
        ("part", 4, 2),
        ("update", 4, 2),
        ("part", 5, 1),
        ("update", 6, 0),
    ],
)
def test_a_run_that_is_stopped_anywhere_goes_on_as_if_it_was_not(tmp_path, kind, what, at, left):
    begun(tmp_path / "whole", **kind)
    with pytest.raises(Interrupted, match="--resume"):
        begun(tmp_path / "parts", Stopping(what, at), **kind)
    assert begun(tmp_path / "parts", resume=True, **kind).parts_drawn == left
    assert drawn(tmp_path / "parts") == drawn(tmp_path / "whole")
    assert len(drawn(tmp_path / "whole")) == 6
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 7)


def test_a_run_that_goes_back_before_a_round_makes_it_again(tmp_path):
    """As after a crash, when what was drawn belongs to weights that are gone."""
    begun(tmp_path / "run", checkpoint_every=1, keep_last=0)
    before, lines = drawn(tmp_path / "run"), metrics_of(tmp_path / "run")
    for step in (3, 4, 5, 6, 7):
        os.rename(tmp_path / f"run/checkpoints/step-{step:06d}", tmp_path / f"gone-{step}")
    said = tmp_path / "run/latents/round-1/samples.json"
    said.write_text(said.read_text().replace('"negative_sha256": "', '"negative_sha256": "other'))
    assert begun(tmp_path / "run", resume=True, checkpoint_every=1, keep_last=0).parts_drawn == 2
    assert drawn(tmp_path / "run") == before
    assert metrics_of(tmp_path / "run") == lines


def test_samples_that_cannot_be_drawn_again_are_missed(tmp_path):
    with pytest.raises(Interrupted):
        begun(tmp_path / "run", Stopping("update", 4))
    (tmp_path / "run/latents/round-1/part-00001.safetensors").unlink()
    with pytest.raises(RunError, match="those of update 3: bring them back, or remove the checkpoints after update 3"):
        begun(tmp_path / "run", resume=True)


@pytest.mark.parametrize("changes", [{"steps": 8}, {"recommended": {"beta": 1.0}}], ids=["steps", "beta"])
def test_what_decides_rounds_cannot_change_on_resume(tmp_path, changes):
    begun(tmp_path / "run")
    with pytest.raises(InputError, match=f"changed recipe: {next(iter(changes))}"):
        begun(tmp_path / "run", resume=True, **changes)


def test_guidance_is_what_rounds_need(tmp_path):
    with pytest.raises(InputError, match="there is none without guidance"):
        begun(tmp_path / "run", sample_guidance=1.0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rollout": "pool"}, "rounds are of rollout samples"),
        ({"rounds": 1001, "samples": 20000}, "rounds is 1001, but there are only 1000 updates"),
        ({"engine": "zero3"}, "engine zero3 keeps in pieces: use engine ddp, zero1 or zero2"),
        ({"engine": "fsdp2"}, "engine fsdp2 keeps in pieces"),
        (
            {"samples": 900},
            "are 18000 rows.*set uses to 12 or, in a new run, samples to 1000",
        ),
    ],
)
def test_rounds_that_cannot_be(values, words):
    with pytest.raises(InputError, match=words):
        build_recipe({"rollout": "samples", "rounds": 2, **values})
