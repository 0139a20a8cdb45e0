"""Noise schedules and grids against diffusers' own schedulers."""

import json

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from selfnpo_core import CLEAN, InputError, NoiseSchedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COG = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}

VARIANCE_PRESERVING = {
    "ddpm linear": DDPMScheduler(),
    "ddpm cosine": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "ddim scaled linear": DDIMScheduler(**SD),
    "ddim zero terminal": DDIMScheduler(**SD, rescale_betas_zero_snr=True),
    "ddim trained betas": DDIMScheduler(num_train_timesteps=50, trained_betas=[0.01 + i / 500 for i in range(50)]),
    "pndm": PNDMScheduler(**SD, skip_prk_steps=True),
    "euler": EulerDiscreteScheduler(**SD),
    "euler zero terminal": EulerDiscreteScheduler(**SD, rescale_betas_zero_snr=True),
    "dpm++": DPMSolverMultistepScheduler(**SD),
    "cogvideox-2b ddim": CogVideoXDDIMScheduler(**COG, snr_shift_scale=3.0),
    "cogvideox-5b dpm": CogVideoXDPMScheduler(**COG, snr_shift_scale=1.0),
}


def image(*, batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(batch, 4, 8, 8, dtype=dtype)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_levels_are_the_schedulers(name: str) -> None:
    scheduler = VARIANCE_PRESERVING[name]
    schedule = NoiseSchedule.from_scheduler(scheduler)
    t = torch.arange(len(scheduler.alphas_cumprod))
    level = schedule.at(t, like=image(batch=len(t)))
    expected = scheduler.alphas_cumprod.double()
    assert level.alpha.shape == level.sigma.shape == (len(t), 1, 1, 1)
    # diffusers builds some tables in float32, and some hold 2^-24 where the exact value is 0
    torch.testing.assert_close(level.alpha.flatten().double() ** 2, expected, rtol=3e-5, atol=1e-7)
    torch.testing.assert_close(level.sigma.flatten().double() ** 2, 1 - expected, rtol=3e-5, atol=1e-7)
    assert schedule.max_timestep == len(t) - 1
    assert not schedule.is_flow


def test_a_saved_configuration_gives_the_same_schedule(tmp_path) -> None:
    scheduler = VARIANCE_PRESERVING["cogvideox-2b ddim"]
    scheduler.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    saved, direct = NoiseSchedule.from_scheduler(config), NoiseSchedule.from_scheduler(scheduler)
    assert torch.equal(saved.alphas_cumprod, direct.alphas_cumprod)
    assert torch.equal(saved.grid(50), direct.grid(50))
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    assert NoiseSchedule.from_scheduler(flow).is_flow


def test_cogvideox_ends_without_signal_after_dividing_the_snr() -> None:
    plain = NoiseSchedule.from_scheduler(CogVideoXDDIMScheduler(snr_shift_scale=1.0)).alphas_cumprod
    shifted = NoiseSchedule.from_scheduler(CogVideoXDDIMScheduler(snr_shift_scale=3.0)).alphas_cumprod
    torch.testing.assert_close(shifted / (1 - shifted), plain / (1 - plain) / 3)
    schedule = NoiseSchedule.from_scheduler(VARIANCE_PRESERVING["cogvideox-2b ddim"])
    last = schedule.at(torch.tensor([999]), like=image(batch=1))
    assert last.alpha.item() == 0
    assert last.sigma.item() == 1


def test_fractional_timesteps_are_euler_discretes() -> None:
    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing="linspace")
    scheduler.set_timesteps(30)
    assert (scheduler.timesteps % 1 != 0).any()
    level = NoiseSchedule.from_scheduler(scheduler).at(scheduler.timesteps, like=image(batch=30))
    torch.testing.assert_close((level.sigma / level.alpha).flatten(), scheduler.sigmas[:-1], rtol=2e-5, atol=0)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(level.alpha))


@pytest.mark.parametrize("name", ["ddim scaled linear", "cogvideox-2b ddim"])
def test_levels_fall_steadily_between_whole_timesteps_up_to_zero_signal(name: str) -> None:
    schedule = NoiseSchedule.from_scheduler(VARIANCE_PRESERVING[name])
    t = torch.linspace(-1, 999, 40001, dtype=torch.float64)
    level = schedule.at(t, like=image(batch=len(t), dtype=torch.float64))
    alpha, sigma = level.alpha.flatten(), level.sigma.flatten()
    assert alpha.isfinite().all()
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


def test_clean_is_clean_on_every_schedule_and_float64_follows_the_sample() -> None:
    for scheduler in (DDIMScheduler(**SD), FlowMatchEulerDiscreteScheduler()):
        level = NoiseSchedule.from_scheduler(scheduler).at(
            torch.full((2,), CLEAN), like=image(batch=2, dtype=torch.float64)
        )
        assert level.alpha.flatten().tolist() == [1, 1]
        assert level.sigma.flatten().tolist() == [0, 0]
        assert level.alpha.dtype == torch.float64
    half = NoiseSchedule.from_scheduler(DDIMScheduler(**SD)).at(
        torch.tensor([500]), like=image(batch=1, dtype=torch.float16)
    )
    assert half.alpha.dtype == half.sigma.dtype == torch.float32


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_flow_levels_and_grid_are_flow_match_eulers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(28)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    torch.testing.assert_close(schedule.grid(28), scheduler.timesteps)
    level = schedule.at(scheduler.timesteps, like=torch.zeros(28, 3, 4, 8, 8))
    assert level.sigma.shape == (28, 1, 1, 1, 1)
    torch.testing.assert_close(level.sigma.flatten(), scheduler.sigmas[:-1])
    torch.testing.assert_close(level.alpha.flatten(), 1 - scheduler.sigmas[:-1])
    assert schedule.is_flow
    assert schedule.max_timestep == 1000


@pytest.mark.parametrize(
    "extra", [{}, {"time_shift_type": "linear"}, {"shift_terminal": 0.1}], ids=["exponential", "linear", "terminal"]
)
def test_dynamically_shifted_flow_grid(extra: dict) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **extra)
    scheduler.set_timesteps(20, mu=0.8)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    torch.testing.assert_close(schedule.grid(20, mu=0.8), scheduler.timesteps, rtol=1e-5, atol=1e-3)
    with pytest.raises(InputError, match="pass mu"):
        schedule.grid(20)


def test_flow_grid_of_unipc() -> None:
    scheduler = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0, num_train_timesteps=1000
    )
    scheduler.set_timesteps(20)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert schedule.is_flow
    assert (schedule.grid(20) - scheduler.timesteps).abs().max() <= 1  # UniPC cuts its timesteps to whole numbers


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("n", [1, 5, 25, 30, 1000])
def test_grid_is_ddims(spacing: str, offset: int, n: int) -> None:
    scheduler = DDIMScheduler(**SD, timestep_spacing=spacing, steps_offset=offset)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    scheduler.set_timesteps(n)
    assert schedule.grid(n).dtype == torch.int64
    assert schedule.grid(n).tolist() == scheduler.timesteps.clamp(max=999).tolist()


def test_noisier_timesteps_are_uniform_above_t() -> None:
    schedule = NoiseSchedule.from_scheduler(DDIMScheduler(**SD))
    g = torch.Generator().manual_seed(0)
    s = schedule.draw_noisier(torch.full((30000,), 989), g)
    counts = s.bincount(minlength=1000)[990:]
    assert counts.sum() == 30000  # nothing at or below t
    assert ((counts - 3000).abs() < 200).all()  # each of the ten: 3000 ± 4 standard deviations
    assert schedule.draw_noisier(torch.tensor([999, 998]), g).tolist() == [999, 999]


def test_noisier_timesteps_on_flow_are_real_numbers() -> None:
    schedule = NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler())
    s = schedule.draw_noisier(torch.full((30000,), 600.0), torch.Generator().manual_seed(0))
    assert s.min() > 600
    assert s.max() <= 1000
    assert abs(s.mean() - 800) < 3
    assert abs(s.std() - 400 / 12**0.5) < 3
    assert schedule.draw_noisier(torch.tensor([1000.0]), torch.Generator()).tolist() == [1000.0]


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EDMEulerScheduler(), "no beta_schedule"),
        ({"num_train_timesteps": 10, "beta_schedule": "sigmoid", "beta_start": 0.1, "beta_end": 0.2}, "'sigmoid'"),
        (object(), "no diffusers scheduler"),
    ],
)
def test_unknown_schedulers_are_refused(scheduler: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NoiseSchedule.from_scheduler(scheduler)


def test_impossible_grids_are_refused() -> None:
    schedule = NoiseSchedule.from_scheduler(DDIMScheduler())
    for n in (0, 1001):
        with pytest.raises(InputError, match="choose 1 to 1000"):
            schedule.grid(n)
    odd = NoiseSchedule.from_scheduler({**DDIMScheduler().config, "timestep_spacing": "odd"})
    with pytest.raises(InputError, match="'odd'"):
        odd.grid(5)
