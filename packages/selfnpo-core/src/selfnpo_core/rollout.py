"""Rollouts: denoising trajectories under weak guidance, without gradient.

One generator, `trajectory`, walks down a grid of timesteps by DDIM steps (2010.02502) and shows what it sees.
The training targets of Self-NPO (2505.11777) are places to stop it:

    full simulation   run to the end of the grid; the last x̂0 is a sample
    truncation        start at a noised sample, stop after K steps; x̂0 = E[x0 | x_t] (Tweedie) is the target

A trajectory pool (`selfnpo_core.pool`) is the same walk, cut into single steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from selfnpo_core.denoise import ddim_step
from selfnpo_core.errors import InputError
from selfnpo_core.guidance import Denoise, guided_estimate
from selfnpo_core.prediction import Estimate
from selfnpo_core.schedule import NoiseSchedule


@dataclass(frozen=True)
class Step:
    """A place on a trajectory: grid index (B,), timestep (B,), sample (B, *S) and its guided estimate."""

    index: Tensor
    t: Tensor
    x_t: Tensor
    estimate: Estimate


@torch.no_grad()
def trajectory(
    denoise: Denoise,
    schedule: NoiseSchedule,
    grid: Tensor,
    x: Tensor,
    prompt: Tensor,
    w: float = 0.0,
    start: Tensor | None = None,
) -> Iterator[Step]:
    """Yield each place from the start on, with one weak-guidance DDIM step between two yields.

    x: (B, *S) at the grid indices start: (B,) (the grid's first point if not given), prompt: (B,). Rows may
    start at different points and walk together; it ends when one of them has been shown at the last point.
    """
    grid = grid.to(x.device)
    index = torch.zeros_like(prompt) if start is None else start.to(x.device)
    steps_left = len(grid) - 1 - int(index.max())
    while True:
        t = grid[index]
        estimate = guided_estimate(denoise, x, t, prompt, w)
        yield Step(index, t, x, estimate)
        if steps_left == 0:
            return
        index, steps_left = index + 1, steps_left - 1
        x = ddim_step(estimate, schedule.at(grid[index], like=x))


def full_simulation(
    denoise: Denoise, schedule: NoiseSchedule, grid: Tensor, x: Tensor, prompt: Tensor, w: float = 0.0
) -> Tensor:
    """The clean sample x0: (B, *S) at the end of the grid, from noise x: (B, *S) at its beginning."""
    for step in trajectory(denoise, schedule, grid, x, prompt, w):  # noqa: B007
        pass
    return step.estimate.x0


def truncated(
    denoise: Denoise,
    schedule: NoiseSchedule,
    grid: Tensor,
    x: Tensor,
    prompt: Tensor,
    steps: int,
    w: float = 0.0,
    start: Tensor | None = None,
) -> Step:
    """The place that x: (B, *S), at grid indices start: (B,), reaches in `steps` steps: steps + 1 forwards.

    Its `x_t` is what is re-noised and its `estimate.x0` the target.
    """
    furthest = 0 if start is None else int(start.max())
    if not 0 <= steps < len(grid) - furthest:
        raise InputError(f"{steps} steps from point {furthest} leave the grid of {len(grid)}: take fewer steps")
    return next(islice(trajectory(denoise, schedule, grid, x, prompt, w, start), steps, None))
