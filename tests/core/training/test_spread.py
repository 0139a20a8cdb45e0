"""The spread of what is trained on, and what is said when it is not that of samples."""

import pytest
import torch
from tests.core.training.toy import SCHEDULER

from selfnpo_core import NoiseSchedule, add_noise, full_simulation, trajectory
from selfnpo_core.testing import GaussianWorld
from selfnpo_core.training.spread import LEVELS, Spreads, beyond, own_spread

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
CPU = torch.device("cpu")


@pytest.mark.parametrize("config", [SCHEDULER, FLOW], ids=["variance preserving", "flow"])
@pytest.mark.parametrize("own", [1.0, 1.9])
def test_the_model_s_own_samples_have_a_spread_of_one_at_any_noise(config, own):
    schedule, g = NoiseSchedule.from_scheduler(config), torch.Generator().manual_seed(0)
    x0, eps = torch.randn((2, 600, 4, 8, 8), generator=g)
    t = torch.rand(600, generator=g) * schedule.max_timestep
    spreads = Spreads(schedule, CPU, own)
    x0 *= own
    for rows in torch.arange(600).split(100):
        x_t = add_noise(x0[rows], eps[rows], schedule.at(t[rows], like=x0))
        spreads.add(x_t, t[rows], 0.5 * x0[rows] + 3)  # a constant is no spread
    found = spreads.measured()
    assert found == pytest.approx(
        {f"spread_{what}_{level}": size for what, size in (("x_t", 1), ("x0", 0.5)) for level in LEVELS}, rel=0.02
    )
    assert not beyond(found)
    assert spreads.measured() == {}


def test_levels_without_rows_are_not_named():
    schedule = NoiseSchedule.from_scheduler(SCHEDULER)
    spreads = Spreads(schedule, CPU, 1.0)
    spreads.add(torch.randn(3, 4, 8, 8), schedule.clean.expand(3), torch.randn(3, 4, 8, 8))
    assert spreads.measured().keys() == {"spread_x_t_low", "spread_x0_low"}


class Watched:
    """The best denoiser of a Gaussian world whose data have unit spread; spreads of trajectories as they go."""

    def __init__(self, w: float):
        self.schedule, g = NoiseSchedule.from_scheduler(SCHEDULER), torch.Generator().manual_seed(0)
        # a prompt leaves a tenth of the variance of all data
        mean = torch.randn((9, 4, 4, 4), generator=g) * 0.9**0.5
        mean[-1] = 0
        variance = torch.full((9, 64), 0.1)
        variance[-1] = 1.0
        world = GaussianWorld(mean, torch.eye(64), variance)
        denoise = world.denoiser(self.schedule)
        self.own = own_spread(
            denoise, self.schedule, shape=(4, 4, 4), num_prompts=8, batch_size=3, generator=g, device=CPU
        )
        self.spreads = Spreads(self.schedule, CPU, self.own)
        x, prompt = torch.randn((64, 4, 4, 4), generator=g), torch.arange(64) % 8
        for step in trajectory(denoise, self.schedule, self.schedule.grid(25), x, prompt, w):
            self.spreads.add(step.x_t, step.t, step.estimate.x0)
        self.end = full_simulation(denoise, self.schedule, self.schedule.grid(25), x, prompt, w)


@pytest.mark.parametrize("w", [-1.0, 0.0])
def test_trajectories_of_samples_are_not_warned_of(w):
    watched = Watched(w)
    assert watched.own == pytest.approx(1, rel=0.2)
    assert not beyond(watched.spreads.measured())


def test_trajectories_that_lead_away_from_samples_are_named():
    """−5 from noise, as a pool would walk it: the spread at the end is far from that of data."""
    away = Watched(-5.0)
    found = beyond(away.spreads.measured())
    assert float(away.end.std()) > 1.5
    assert "spread_x_t_low" in found
    assert "advance_guidance" in found["spread_x_t_low"]
    assert "\n" not in found["spread_x_t_low"]
