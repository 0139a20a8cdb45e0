"""Noise up and down: re-noising keeps marginals, DDIM's step is diffusers' own."""

from collections.abc import Callable

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from scipy.stats import ks_2samp, kstest
from torch import Tensor

from selfnpo_core import CLEAN, NoiseSchedule, add_noise, ddim_step, renoise, to_estimate
from selfnpo_core.testing import GaussianWorld

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_TERMINAL = CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
SCHEDULERS = {"vp": DDIMScheduler(**SD), "zero terminal": ZERO_TERMINAL, "flow": FlowMatchEulerDiscreteScheduler()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels(kind: str, *times: float, like: Tensor) -> list:
    schedule = NoiseSchedule.from_scheduler(SCHEDULERS[kind])
    return [schedule.at(torch.full((len(like),), t), like=like) for t in times]


def test_known_values() -> None:
    """A rectified flow, t = 0.2, s = 0.6: ratio 0.4/0.8, variance 0.36 − 0.25·0.04 = 0.35."""
    x, eps = torch.tensor([[2.0]]), torch.tensor([[-3.0]])
    level_t, level_s = levels("flow", 200.0, 600.0, like=x)
    torch.testing.assert_close(add_noise(x, eps, level_t), torch.tensor([[0.8 * 2 - 0.2 * 3]]))
    torch.testing.assert_close(renoise(x, eps, level_t, level_s), torch.tensor([[1 - 3 * 0.35**0.5]]))


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize(("t", "s"), [(-1, 300), (20, 60), (300, 700), (500, 999)])
def test_renoising_keeps_marginals(kind: str, t: int, s: int) -> None:
    """Kolmogorov-Smirnov, on data that is not Gaussian: two values."""
    n, g = 20000, generator(t * 1000 + s)
    x0 = torch.where(torch.rand(n, 1, generator=g, dtype=torch.float64) < 0.3, -1.5, 1.0)
    level_t, level_s = levels(kind, t, s, like=x0)
    fresh = [torch.randn(n, 1, generator=g, dtype=torch.float64) for _ in range(3)]
    x_t = add_noise(x0, fresh[0], level_t)
    x_s, direct = renoise(x_t, fresh[1], level_t, level_s), add_noise(x0, fresh[2], level_s)
    assert ks_2samp(x_s[:, 0], direct[:, 0]).pvalue > 0.01


def test_renoising_gaussian_data_gives_the_exact_marginal_and_noising_the_mean_does_not() -> None:
    world = GaussianWorld.random((1,), num_prompts=1)
    prompt, g = torch.zeros(20000, dtype=torch.int64), generator()
    x0 = world.sample(prompt, g)
    level_t, level_s = levels("vp", 500, 540, like=x0)
    eps_t, eps_s = (torch.randn(x0.shape, generator=g, dtype=x0.dtype) for _ in range(2))
    x_t = add_noise(x0, eps_t, level_t)

    def p_value(x_s: Tensor) -> float:
        alpha, sigma = level_s.alpha[0].item(), level_s.sigma[0].item()
        scale = (alpha**2 * world.variance[0, 0].item() + sigma**2) ** 0.5
        return kstest(x_s[:, 0], "norm", args=(alpha * world.mean[0].item(), scale)).pvalue

    assert p_value(renoise(x_t, eps_s, level_t, level_s)) > 0.05
    assert p_value(add_noise(world.estimate(x_t, level_t, prompt).x0, eps_s, level_s)) < 1e-6


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_renoising_twice_is_renoising_once_in_law(kind: str) -> None:
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    level_t, level_s, level_r = levels(kind, 100, 400, 999, like=one)

    def kept_and_variance(a, b) -> tuple[float, float]:
        return renoise(one, zero, a, b).item(), renoise(zero, one, a, b).item() ** 2

    (kept_ts, var_ts), (kept_sr, var_sr) = kept_and_variance(level_t, level_s), kept_and_variance(level_s, level_r)
    kept, var = kept_and_variance(level_t, level_r)
    assert kept == pytest.approx(kept_ts * kept_sr, abs=1e-12)
    assert var == pytest.approx(kept_sr**2 * var_ts + var_sr, abs=1e-12)
    # and the noise that x_t already has is counted, once
    assert kept**2 * level_t.sigma.item() ** 2 + var == pytest.approx(level_r.sigma.item() ** 2, abs=1e-12)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 4, 6, 5)], ids=["image", "video"])
def test_renoising_to_the_same_level_changes_nothing(kind: str, shape: tuple[int, ...]) -> None:
    x_t, eps = torch.randn(4, *shape, generator=generator()), torch.randn(4, *shape, generator=generator(1))
    schedule = NoiseSchedule.from_scheduler(SCHEDULERS[kind])
    level = schedule.at(torch.tensor([0, 500, 900, schedule.max_timestep]), like=x_t)
    torch.testing.assert_close(renoise(x_t, eps, level, level), x_t, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["zero terminal", "flow"])
def test_renoising_to_pure_noise_is_the_noise_itself(kind: str) -> None:
    x_t, eps = torch.randn(2, 4, 8, 8, generator=generator()), torch.randn(2, 4, 8, 8, generator=generator(1))
    schedule = NoiseSchedule.from_scheduler(SCHEDULERS[kind])
    t, s = torch.tensor([400, 998]), torch.full((2,), schedule.max_timestep)
    torch.testing.assert_close(renoise(x_t, eps, schedule.at(t, like=x_t), schedule.at(s, like=x_t)), eps)


def run(grid: Tensor, last: float, schedule: NoiseSchedule, network: Callable, kind: str, x: Tensor) -> Tensor:
    """Our loop over a whole grid: output → Estimate → DDIM step."""
    for t, t_next in zip(grid, [*grid[1:], torch.tensor(last)], strict=True):
        level, level_next = (schedule.at(time.expand(len(x)), like=x) for time in (t, t_next))
        x = ddim_step(to_estimate(network(x, t), x, level, kind), level_next)
    return x


def network(x: Tensor, t: Tensor) -> Tensor:
    """Some smooth function of sample and time, with values of a sample's size."""
    return torch.sin(2 * x + x.flip(-1)) + 0.3 * torch.cos(t / 200) * x


@pytest.mark.parametrize(
    ("scheduler", "last"),
    [
        (DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1), 0),
        (DDIMScheduler(**SD, clip_sample=False, prediction_type="v_prediction"), CLEAN),
        (DDIMScheduler(**SD, clip_sample=False, prediction_type="sample", timestep_spacing="trailing"), CLEAN),
        (CogVideoXDDIMScheduler.from_config(ZERO_TERMINAL.config, prediction_type="v_prediction"), CLEAN),
    ],
    ids=["sd15", "v", "sample", "cogvideox"],
)
@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 4, 6, 5)], ids=["image", "video"])
def test_a_whole_run_equals_the_schedulers(scheduler, last: float, shape: tuple[int, ...]) -> None:
    scheduler.set_timesteps(25)
    x = start = torch.randn(2, *shape, generator=generator(), dtype=torch.float64)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    schedule = NoiseSchedule.from_scheduler(scheduler)
    ours = run(schedule.grid(25), last, schedule, network, scheduler.config.prediction_type, start)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
    assert (ours - start).abs().mean() > 0.1


def test_on_a_flow_the_step_is_eulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(25)
    x = start = torch.randn(2, 4, 8, 8, generator=generator())
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    schedule = NoiseSchedule.from_scheduler(scheduler)
    ours = run(schedule.grid(25), CLEAN, schedule, network, "flow", start)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
