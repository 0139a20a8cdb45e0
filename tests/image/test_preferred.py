"""The demo's preference-tuned variant: how its pairs and its LoRA are made, and the arms that use it."""

import json
import math

import pytest
import torch
from peft import LoraConfig

from selfnpo_core.experiments.arms import TUNED_ARMS, make_arm, train_arm
from selfnpo_core.experiments.measure import sample
from selfnpo_core.negative import norm
from selfnpo_core.weights.npo_folder import load_npo
from selfnpo_core.weights.offsets import offset_of
from selfnpo_core.worlds.world import Task
from selfnpo_image import shipped
from selfnpo_image.demo import pictures
from selfnpo_image.demo.build import preferred
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sampling import find_preference
from selfnpo_image.sd15 import SD15

SMALL = {"steps": 2, "batch_size": 4, "pool_size": 25, "grid_steps": 5, "rank": 4, "learning_rate": 1e-3}
DEMO = pictures.demo(presets={"lora": SMALL, "full": {**SMALL, "learning_rate": 1e-4}}, kind="full")


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(find_base("demo"))


@pytest.fixture(scope="module")
def pairs(pipe):
    return preferred.draw_pairs(DEMO, pipe, 48, seed=3, least_gap=0.1, batch=24)


def test_the_oracle_prefers_the_winners(pipe, pairs):
    assert 4 < len(pairs.prompts) < 48  # what it hardly tells apart is left out
    labels = torch.tensor([DEMO.world.parse_caption(text) for text in pairs.prompts])
    won, lost = (preferred._liking(DEMO, pipe.vae, x, labels) for x in (pairs.winner, pairs.loser))
    torch.testing.assert_close(won - lost, pairs.gap)
    assert pairs.gap.min() >= 0.1


def test_the_loss_begins_at_log_2_and_moves_towards_the_winners(pairs):
    backbone = SD15(find_base("demo"), device="cpu")
    backbone.embed(pairs.prompts)
    torch.manual_seed(0)
    backbone.denoiser.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v", "to_out.0"]), adapter_name="eta")
    trained = [parameter for name, parameter in backbone.denoiser.named_parameters() if ".lora_" in name]
    optimizer, rows, losses = torch.optim.AdamW(trained, 1e-3), torch.arange(4), []
    for _ in range(12):
        value, agreeing = preferred._loss(
            backbone, backbone.denoiser, pairs, rows, 5000.0, torch.Generator().manual_seed(1)
        )
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[-1] < losses[0] - 0.1
    assert agreeing == 1.0


def test_what_ships_is_better_by_the_oracle_and_found_by_its_name(pipe):
    card = json.loads((shipped.PREFERRED.parent / "card.json").read_text(encoding="utf-8"))
    assert card["after"]["1"]["accuracy"] > card["before"]["1"]["accuracy"]
    assert shipped.PREFERRED.stat().st_size < 4 * 2**20
    assert find_preference("demo-preferred", find_base("demo")).lora == shipped.PREFERRED
    assert norm(offset_of(load_npo(shipped.PREFERRED))) > 0


def test_tuned_arms_differ_and_leave_the_pipeline_as_it_was(pipe, tmp_path):
    task = Task.draw(DEMO.world, 2, 6)

    def drawn():
        return sample(DEMO.world, pipe, task, guidance_scale=3.0, steps=3).data

    train_arm(DEMO, "npo", 0, tmp_path)
    base, seen = drawn(), []
    for name in TUNED_ARMS:
        arm = make_arm(DEMO, name, 0, tmp_path, beta=None if name == "tuned" else 20.0)
        assert arm.against == (("cfg",) if name == "tuned" else ("cfg", "tuned"))
        with arm.attach(pipe):
            seen.append(drawn())
        assert torch.equal(base, drawn()), name
    for k, one in enumerate(seen):
        assert not any(torch.equal(one, other) for other in [base, *seen[k + 1 :]])


@pytest.mark.slow
def test_the_build_writes_a_lora(tmp_path):
    file = preferred.train(tmp_path / "preferred", DEMO, captions=64, steps=2, batch=4)
    assert norm(offset_of(load_npo(file))) > 0
