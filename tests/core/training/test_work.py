"""What a run will have to calculate, and the time that is guessed from it."""

import pytest
import torch
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe
from torch import nn

from selfnpo_core.training.work import CountedFlops, forward_flops, work_of

FORWARD = 2 * (9 * 4 * 4 * 16 + 81 * 48 + 48 * 64)
"""Of the toy: a convolution of 4 to 4 channels at 16 places, and two linear layers."""


def work(**changes):
    backbone = ToyBackbone()
    backbone.embed(PROMPTS)
    network, names = backbone.denoiser, list(backbone.denoiser.state_dict())
    found = work_of(backbone, toy_recipe(**changes), PROMPTS)
    assert backbone.denoiser is network
    assert list(network.state_dict()) == names
    return {name: flops / FORWARD for name, flops in found.stages.items()}


def test_a_forward_is_what_its_layers_are():
    backbone = ToyBackbone()
    backbone.embed(PROMPTS)
    assert forward_flops(backbone, toy_recipe()) == FORWARD


def test_attention_is_counted():
    x = torch.randn(2, 3, 50, 16)
    with torch.no_grad(), CountedFlops() as flops:
        nn.functional.scaled_dot_product_attention(x, x, x)
    assert flops.total == 2 * 2 * 2 * 3 * 50 * 50 * 16


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({}, {"warming the pool up": 40 * 2, "updates": 4 * 8 * (1 + 2)}),
        ({"train": "full", "teacher_guidance": -5.0}, {"warming the pool up": 40 * 4, "updates": 4 * 8 * (2 + 3)}),
        ({"pool_start": 16}, {"warming the pool up": 16 * 2, "updates": 4 * 8 * 3 + 24 * 2}),
        ({"pool_target": "endpoint"}, {"warming the pool up": 40 * (2 + 5), "updates": 4 * 8 * 3}),
        ({"rollout": "full"}, {"updates": 4 * 8 * (5 + 2)}),
        ({"rollout": "samples", "samples": 20}, {"drawing": 20 * 6, "updates": 4 * 8 * 2}),
    ],
)
def test_stages_are_of_rows_times_forwards(changes, stages):
    assert work(**changes) == stages


def test_time_is_of_a_card_s_rate_and_says_so():
    backbone = ToyBackbone()
    backbone.embed(PROMPTS)
    found = work_of(backbone, toy_recipe(), PROMPTS, processes=2)
    assert found.seconds(19.5e12) == pytest.approx(1.0)  # two cards at half their rate
    assert "time, an estimate" in str(found)
    assert "from FLOPs alone, on 2 × A100 at 50% of 19.5 TFLOP/s" in str(found)
