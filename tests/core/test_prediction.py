"""Prediction types: every cycle through an Estimate, and diffusers' own values."""

from itertools import product

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler

from selfnpo_core import InputError, NoiseSchedule, add_noise, from_estimate, to_estimate
from selfnpo_core.prediction import PREDICTION_TYPES

IMAGE, VIDEO = (4, 8, 8), (3, 4, 6, 5)
SCHEDULERS = {
    "vp": DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "zero terminal": CogVideoXDDIMScheduler(rescale_betas_zero_snr=True),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("shape", [IMAGE, VIDEO], ids=["image", "video"])
@pytest.mark.parametrize(("first", "second"), list(product(PREDICTION_TYPES, PREDICTION_TYPES)))
def test_every_cycle_returns_the_output(kind: str, shape: tuple[int, ...], first: str, second: str) -> None:
    x_t, output = normal(5, *shape), normal(5, *shape, seed=1)
    level = NoiseSchedule.from_scheduler(SCHEDULERS[kind]).at(torch.tensor([1, 200, 500, 800, 980]), like=x_t)
    there = to_estimate(output, x_t, level, first)
    other = from_estimate(there, x_t, level, second)
    back = to_estimate(other, x_t, level, second)
    torch.testing.assert_close(back.x0, there.x0)
    torch.testing.assert_close(back.eps, there.eps)
    torch.testing.assert_close(from_estimate(back, x_t, level, first), output)
    torch.testing.assert_close(add_noise(there.x0, there.eps, level), x_t)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_true_output_gives_the_true_sample_and_noise(kind: str, prediction_type: str) -> None:
    x0, eps = normal(4, *IMAGE), normal(4, *IMAGE, seed=1)
    level = NoiseSchedule.from_scheduler(SCHEDULERS[kind]).at(torch.tensor([5, 300, 700, 990]), like=x0)
    truth = {
        "epsilon": eps,
        "v_prediction": level.alpha * eps - level.sigma * x0,
        "sample": x0,
        "flow": eps - x0,
    }
    estimate = to_estimate(truth[prediction_type], add_noise(x0, eps, level), level, prediction_type)
    torch.testing.assert_close(estimate.x0, x0)
    torch.testing.assert_close(estimate.eps, eps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [1, 480, 960])
def test_x0_is_diffusers_pred_original_sample(prediction_type: str, t: int) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(25)
    x_t, output = normal(2, *IMAGE).float(), normal(2, *IMAGE, seed=1).float()
    level = NoiseSchedule.from_scheduler(scheduler).at(torch.tensor([t, t]), like=x_t)
    expected = scheduler.step(output, t, x_t).pred_original_sample
    torch.testing.assert_close(to_estimate(output, x_t, level, prediction_type).x0, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "flow"])
@pytest.mark.parametrize("kind", ["zero terminal", "flow"])
def test_finite_without_signal(prediction_type: str, kind: str) -> None:
    schedule = NoiseSchedule.from_scheduler(SCHEDULERS[kind])
    x_t, output = normal(1, *IMAGE), normal(1, *IMAGE, seed=1)
    level = schedule.at(torch.tensor([schedule.max_timestep]), like=x_t)
    assert level.alpha.item() == 0
    estimate = to_estimate(output, x_t, level, prediction_type)
    assert estimate.x0.isfinite().all()
    torch.testing.assert_close(estimate.eps, x_t)  # pure noise is its own noise
    torch.testing.assert_close(from_estimate(estimate, x_t, level, prediction_type), output)


def test_unknown_types_are_refused_both_ways() -> None:
    x = normal(1, *IMAGE)
    level = NoiseSchedule.from_scheduler(SCHEDULERS["vp"]).at(torch.tensor([3]), like=x)
    with pytest.raises(InputError, match="'score' is unknown: use one of epsilon"):
        to_estimate(x, x, level, "score")
    with pytest.raises(InputError, match="'score'"):
        from_estimate(to_estimate(x, x, level, "epsilon"), x, level, "score")
