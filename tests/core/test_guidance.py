"""Guidance, and the forwards it does not spend."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from selfnpo_core import NULL, Estimate, InputError, NoiseSchedule, guide, guided_estimate
from selfnpo_core.guidance import check_knots, interval, share_at
from selfnpo_core.testing import CountingDenoiser, GaussianWorld

PROMPT = torch.tensor([0, 2, 1, 2])
T = torch.tensor([900, 500, 300, 20])


@pytest.fixture
def setting() -> tuple[CountingDenoiser, torch.Tensor]:
    world = GaussianWorld.random((2, 3), num_prompts=3)
    x_t = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return CountingDenoiser(world.denoiser(NoiseSchedule.from_scheduler(DDIMScheduler()))), x_t


def test_guide_on_tensors_and_estimates() -> None:
    negative, positive = torch.tensor([1.0, 2.0]), torch.tensor([2.0, -1.0])
    assert torch.equal(guide(negative, positive, 1.0), positive)
    assert torch.equal(guide(negative, positive, 0.0), negative)
    assert guide(negative, positive, 5.0).tolist() == [6.0, -13.0]
    both = guide(Estimate(negative, positive), Estimate(positive, negative), 5.0)
    assert both.x0.tolist() == [6.0, -13.0]
    assert both.eps.tolist() == [-3.0, 14.0]


@pytest.mark.parametrize("w", [-5.0, -1.5, -1.0, -0.5, 0.0, 1.0, 6.5])
def test_weak_guidance_counts_from_the_conditional_estimate(setting, w: float) -> None:
    denoise, x_t = setting
    conditional = denoise.denoise(x_t, T, PROMPT)
    null = denoise.denoise(x_t, T, torch.full_like(PROMPT, NULL))
    guided = guided_estimate(denoise, x_t, T, PROMPT, w)
    torch.testing.assert_close(guided.x0, conditional.x0 + w * (conditional.x0 - null.x0))
    torch.testing.assert_close(guided.eps, conditional.eps + w * (conditional.eps - null.eps))


@pytest.mark.parametrize(
    ("w", "forwards"),
    [
        (0.0, [[0, 2, 1, 2]]),
        (-1.0, [[NULL] * 4]),
        (-5.0, [[NULL] * 4 + [0, 2, 1, 2]]),
        (6.5, [[NULL] * 4 + [0, 2, 1, 2]]),
    ],
)
def test_no_forward_is_wasted(setting, w: float, forwards: list[list[int]]) -> None:
    denoise, x_t = setting
    guided_estimate(denoise, x_t, T, PROMPT, w)
    assert denoise.prompts == forwards
    assert denoise.rows == [len(forward) for forward in forwards]


def test_a_share_by_noise_level() -> None:
    knots = ((0.1, 1.0), (1.0, 0.0), (1.0, 2.0), (4.0, 4.0))
    known = {0.0: 1.0, 0.1: 1.0, 10**-0.5: 0.5, 1.0: 0.0, 2.0: 3.0, 4.0: 4.0, 1e9: 4.0, math.inf: 4.0}
    for level, share in known.items():
        assert share_at(knots, level) == pytest.approx(share)
    inside = interval(0.5, 2.0)
    assert [share_at(inside, level) for level in (0.4, 0.5, 0.51, 2.0, 2.01)] == [0, 0, 1, 1, 0]
    assert share_at(((3.0, 0.7),), 1.0) == share_at(((3.0, 0.7),), 9.0) == 0.7
    for wrong in ((), ((0.0, 1.0),), ((2.0, 1.0), (1.0, 1.0)), ((1.0, math.nan),), ((math.inf, 1.0),)):
        with pytest.raises(InputError):
            check_knots(wrong)
