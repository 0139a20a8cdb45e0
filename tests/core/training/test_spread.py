"""The spread of what is trained on, and what is said when it is not that of samples."""

import pytest
import torch
from tests.core.training.toy import SCHEDULER

from selfnpo_core import NoiseSchedule, add_noise, full_simulation, trajectory
from selfnpo_core.testing import GaussianWorld
from selfnpo_core.training.spread import LEVELS, Spreads, beyond

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
CPU = torch.device("cpu")


@pytest.mark.parametrize("config", [SCHEDULER, FLOW], ids=["variance preserving", "flow"])
def test_samples_of_unit_variance_have_a_spread_of_one_at_any_noise(config):
    schedule, g = NoiseSchedule.from_scheduler(config), torch.Generator().manual_seed(0)
    x0, eps = torch.randn((2, 600, 4, 8, 8), generator=g)
    t = torch.rand(600, generator=g) * schedule.max_timestep
    spreads = Spreads(schedule, CPU)
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
    spreads = Spreads(schedule, CPU)
    spreads.add(torch.randn(3, 4, 8, 8), schedule.clean.expand(3), torch.randn(3, 4, 8, 8))
    assert spreads.measured().keys() == {"spread_x_t_low", "spread_x0_low"}


class Watched:
    """The best denoiser of a Gaussian world, whose trajectories' spreads are measured as they are walked."""

    def __init__(self, w: float):
        self.schedule, g = NoiseSchedule.from_scheduler(SCHEDULER), torch.Generator().manual_seed(0)
        # all data, whatever the prompt, has unit variance; a prompt leaves a tenth of it
        mean = torch.randn((9, 4, 4, 4), generator=g) * 0.9**0.5
        mean[-1] = 0
        variance = torch.full((9, 64), 0.1)
        variance[-1] = 1.0
        world = GaussianWorld(mean, torch.eye(64), variance)
        self.spreads, denoise = Spreads(self.schedule, CPU), world.denoiser(self.schedule)
        x, prompt = torch.randn((64, 4, 4, 4), generator=g), torch.arange(64) % 8
        for step in trajectory(denoise, self.schedule, self.schedule.grid(25), x, prompt, w):
            self.spreads.add(step.x_t, step.t, step.estimate.x0)
        self.end = full_simulation(denoise, self.schedule, self.schedule.grid(25), x, prompt, w)


@pytest.mark.parametrize("w", [-1.0, 0.0, 0.5])
def test_trajectories_of_samples_are_not_warned_of(w):
    assert not beyond(Watched(w).spreads.measured())


def test_trajectories_that_lead_away_from_samples_are_named():
    """−5 from noise, as a pool would walk it: the spread at the end is far from that of data."""
    away = Watched(-5.0)
    found = beyond(away.spreads.measured())
    assert float(away.end.std()) > 1.5
    assert "spread_x_t_low" in found
    assert "advance_guidance" in found["spread_x_t_low"]
    assert "\n" not in found["spread_x_t_low"]
