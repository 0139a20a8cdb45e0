"""Rollouts against loops written out by hand."""

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from selfnpo_core import InputError, NoiseSchedule, full_simulation, trajectory, truncated
from selfnpo_core.testing import CountingDenoiser, GaussianWorld

PROMPT = torch.tensor([0, 1, 2, 0])
SCHEDULES = {
    "zero terminal": CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request) -> NoiseSchedule:
    return NoiseSchedule.from_scheduler(SCHEDULES[request.param])


@pytest.fixture
def denoise(schedule) -> CountingDenoiser:
    return CountingDenoiser(GaussianWorld.random((2, 2, 3), num_prompts=3).denoiser(schedule))


def noise() -> Tensor:
    return torch.randn(4, 2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(denoise, schedule, grid: Tensor, row: int, x: Tensor, first: int, steps: int, w: float):
    """One row alone: (x_t, x̂0) after `steps` DDIM steps from grid index `first`, with both branches always run."""
    x, prompt = x[row : row + 1], PROMPT[row : row + 1]
    for index in range(first, first + steps + 1):
        t = grid[index : index + 1]
        positive, negative = denoise(x, t, prompt), denoise(x, t, torch.tensor([-1]))
        x0, eps = ((1 + w) * p - w * n for p, n in ((positive.x0, negative.x0), (positive.eps, negative.eps)))
        here = x
        if index < first + steps:
            level = schedule.at(grid[index + 1 : index + 2], like=x)
            x = level.alpha * x0 + level.sigma * eps
    return here, x0


@pytest.mark.parametrize("w", [-1.0, 0.0, -3.0, 2.0])
def test_full_simulation_equals_the_hand_loop(schedule, denoise, w: float) -> None:
    grid = schedule.grid(10)
    expected = [by_hand(denoise.denoise, schedule, grid, row, noise(), 0, 9, w)[1] for row in range(4)]
    result = full_simulation(denoise, schedule, grid, noise(), PROMPT, w)
    torch.testing.assert_close(result, torch.cat(expected))
    assert denoise.rows == [4 if w in (-1, 0) else 8] * 10


@pytest.mark.parametrize("w", [-1.0, 0.0, -3.0])
def test_truncation_equals_the_hand_loop_for_rows_that_start_apart(schedule, denoise, w: float) -> None:
    grid, start = schedule.grid(12), torch.tensor([0, 3, 6, 3])
    expected = [by_hand(denoise.denoise, schedule, grid, row, noise(), int(start[row]), 5, w) for row in range(4)]
    place = truncated(denoise, schedule, grid, noise(), PROMPT, 5, w, start)
    torch.testing.assert_close(place.x_t, torch.cat([x for x, _ in expected]))
    torch.testing.assert_close(place.estimate.x0, torch.cat([x0 for _, x0 in expected]))
    assert torch.equal(place.index, start + 5)
    assert torch.equal(place.t, grid[start + 5])
    assert len(denoise.rows) == 6  # five steps and Tweedie's, whatever the starts


def test_truncation_to_the_end_is_full_simulation_and_none_is_tweedie(schedule, denoise) -> None:
    grid = schedule.grid(8)
    whole = full_simulation(denoise, schedule, grid, noise(), PROMPT, -1.0)
    assert torch.equal(truncated(denoise, schedule, grid, noise(), PROMPT, 7, -1.0).estimate.x0, whole)
    place = truncated(denoise, schedule, grid, noise(), PROMPT, 0, 0.0, torch.full((4,), 7))
    assert torch.equal(place.x_t, noise())
    assert torch.equal(place.estimate.x0, denoise(noise(), grid[[7] * 4], PROMPT).x0)


def test_trajectory_is_lazy_and_shows_every_point(schedule, denoise) -> None:
    grid = schedule.grid(6)
    walk = trajectory(denoise, schedule, grid, noise(), PROMPT, -1.0)
    first = next(walk)
    assert torch.equal(first.x_t, noise())
    assert len(denoise.rows) == 1
    places = [first, *walk]
    assert [int(place.index[0]) for place in places] == list(range(6))
    assert torch.equal(torch.stack([place.t[0] for place in places]), grid)


def test_no_gradient_inside_and_none_lost_outside(schedule) -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    world = GaussianWorld.random((2, 2, 3), num_prompts=3)

    def denoise(x_t, t, prompt):
        return world.estimate(weight * x_t, schedule.at(t, like=x_t), prompt)

    for place in trajectory(denoise, schedule, schedule.grid(3), noise(), PROMPT):
        assert not place.estimate.x0.requires_grad
        assert torch.is_grad_enabled()  # the caller trains between two yields
        assert (weight * place.x_t).requires_grad


def test_too_many_steps_are_refused(schedule, denoise) -> None:
    with pytest.raises(InputError, match="5 steps from point 2 leave the grid of 7"):
        truncated(denoise, schedule, schedule.grid(7), noise(), PROMPT, 5, start=torch.tensor([0, 1, 2, 1]))
    assert denoise.rows == []
