"""CFG++ in stock pipelines, against its own algorithm."""

from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, EulerDiscreteScheduler
from tests.core.adapters.reference import assert_same
from tests.core.adapters.test_guidance_rule import PROMPTS
from tests.core.adapters.test_rules import draw, guided, step
from tests.tiny import PIPELINES, sample

from selfnpo_core import InputError
from selfnpo_core.adapters import GuidanceRule
from selfnpo_core.adapters.null_renoised import NullRenoised
from selfnpo_core.prediction import to_estimate
from selfnpo_core.schedule import CLEAN, NoiseSchedule


@torch.no_grad()
def algorithm(pipe: Any, share: float) -> torch.Tensor:
    """Algorithm 2 of 2406.08070 on the SD1.5 pipeline: two noises, one for x̂0 and one to put back."""
    embeds, null = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    pipe.scheduler.set_timesteps(3)
    times = pipe.scheduler.timesteps.tolist()
    for t, u in zip(times, [*times[1:], None], strict=True):
        here = pipe.scheduler.alphas_cumprod[t]
        there = pipe.scheduler.final_alpha_cumprod if u is None else pipe.scheduler.alphas_cumprod[u]
        n, p = pipe.unet(x, t, null).sample, pipe.unet(x, t, embeds).sample
        x0 = (x - (1 - here).sqrt() * (n + share * (p - n))) / here.sqrt()
        x = there.sqrt() * x0 + (1 - there).sqrt() * n
    return x


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_it_is_the_papers_algorithm(share: float) -> None:
    pipe = PIPELINES["sd15"]()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    expected, plain = algorithm(pipe, share), sample("sd15", pipe, PROMPTS)
    with GuidanceRule.attach(pipe, NullRenoised(share=share, scheduler=pipe.scheduler)):
        assert_same(sample("sd15", pipe, PROMPTS), expected)
    assert (expected - plain).abs().max() > 1e-3


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_step_of_a_video_model_renoises_with_the_null_prediction(spacing: str) -> None:
    """By v-prediction, with no signal at the first step of "trailing", and with clean data after the last."""
    scheduler = CogVideoXDDIMScheduler(
        rescale_betas_zero_snr=True, timestep_spacing=spacing, prediction_type="v_prediction", clip_sample=False
    )
    scheduler.set_timesteps(5)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    x, n, p = (draw(2, 3, 4, 6, 6, seed=seed) for seed in range(3))
    for index, t in enumerate(scheduler.timesteps):
        level = schedule.at(t.expand(2), like=x)
        at = step(n, p, x_t=x, level=level, prediction_type="v_prediction", index=index)
        ours = scheduler.step(guided(NullRenoised(share=0.4, scheduler=scheduler), at), t, x)[0]
        x0, eps = (
            to_estimate(n + 0.4 * (p - n), x, level, "v_prediction").x0,
            to_estimate(n, x, level, "v_prediction").eps,
        )
        there = schedule.at((t - 200).clamp(min=CLEAN).expand(2), like=x)
        assert_same(ours, there.alpha * x0 + there.sigma * eps)


def test_other_schedulers_are_refused() -> None:
    for scheduler in (EulerDiscreteScheduler(), DDIMScheduler(clip_sample=True)):
        with pytest.raises(InputError, match="exact for DDIMScheduler and CogVideoXDDIMScheduler without clipping"):
            NullRenoised(share=0.5, scheduler=scheduler)
