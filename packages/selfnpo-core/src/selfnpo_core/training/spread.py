"""Whether what is trained on looks like samples: the standard deviation of x_t and of x̂0 by noise level.

    x_t = alpha·x0 + sigma·eps      std(x_t) = sqrt(alpha²·s² + sigma²) for samples x0 of standard deviation s

The spread of x_t is its standard deviation divided by that of the model's own samples there, and so is that of
x̂0, a mean over what x_t may have come from, by s: 1 is as it should be. s is that of a few samples under their
prompts, without guidance, drawn in few steps. Trajectories under a guidance that points far away from the prompt
(2505.11777 has −5 for SDXL, over five steps from noised pictures) leave that range when they begin at noise, and
a student would learn from them what no sample looks like.

Levels are thirds of the timesteps. Spreads are over rows, channels and places of all processes together.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from selfnpo_core.guidance import Denoise
from selfnpo_core.rollout import full_simulation
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.system.processes import total

LEVELS = ("low", "middle", "high")
LIMITS: Mapping[str, tuple[float, float]] = {"x_t": (2 / 3, 1.25), "x0": (0.0, 3.0)}
"""Spreads that samples may have. On the shipped models walks from noise in ten steps ended with .85 to 1.22 times s
under w of −1 to 4, and with 3.1 (pictures) and 1.6 (clips) under −5; x̂0 had 2.8 at high noise under w = 4."""
SAMPLES, STEPS = 8, 5
"""That the model's own spread is measured on, and steps in which they are drawn."""
NAMES = {"x_t": "x_t", "x0": "the estimated x0"}


class Spreads:
    """Sums of what was seen since the last `measured`. Of one process; `measured` is for all together."""

    def __init__(self, schedule: NoiseSchedule, device: torch.device, own: float):
        """own: s, the standard deviation of the model's own samples."""
        self._schedule, self._own = schedule, own
        self._sums = torch.zeros((len(LIMITS), 3, len(LEVELS)), device=device)  # of rows, of means, of mean squares

    def add(self, x_t: Tensor, t: Tensor, x0: Tensor) -> None:
        """x_t: (B, *S) at t: (B,), and what is said of its x0: (B, *S)."""
        level = self._schedule.at(t, like=x_t)
        expected = ((level.alpha * self._own) ** 2 + level.sigma**2).sqrt()
        third = (t.to(x_t.device) * len(LEVELS) / self._schedule.max_timestep).long().clamp(0, len(LEVELS) - 1)
        for sums, x in zip(self._sums, (x_t / expected, x0 / self._own), strict=True):
            rows = x.detach().float().flatten(1)
            seen = torch.stack([torch.ones_like(rows[:, 0]), rows.mean(1), rows.square().mean(1)])
            sums.index_add_(1, third, seen)

    def measured(self) -> dict[str, float]:
        """{"spread_x_t_high": 1.02, …}: of the levels that had rows. What was seen is forgotten."""
        count, mean, square = total(self._sums).double().cpu().unbind(1)
        self._sums.zero_()
        spread = (square / count - (mean / count) ** 2).clamp(min=0).sqrt()
        return {
            f"spread_{what}_{name}": float(spread[i, k])
            for i, what in enumerate(LIMITS)
            for k, name in enumerate(LEVELS)
            if count[i, k]
        }


@torch.no_grad()
def own_spread(
    denoise: Denoise,
    schedule: NoiseSchedule,
    *,
    shape: tuple[int, ...],
    num_prompts: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
) -> float:
    """s: the standard deviation of a few samples of shape S, of random prompts. All processes draw the same ones."""
    grid = schedule.grid(STEPS)
    x = torch.randn((SAMPLES, *shape), generator=generator)
    prompt = torch.randint(num_prompts, (SAMPLES,), generator=generator)
    parts = zip(x.split(batch_size), prompt.split(batch_size), strict=True)
    drawn = [full_simulation(denoise, schedule, grid, x.to(device), p.to(device)).cpu() for x, p in parts]
    return float(torch.cat(drawn).double().std())


def beyond(spreads: Mapping[str, float]) -> dict[str, str]:
    """What is out of its limits, by name, in one line each."""
    lines = {}
    for what, (low, high) in LIMITS.items():
        for level in LEVELS:
            name = f"spread_{what}_{level}"
            if not low <= spreads.get(name, 1.0) <= high:
                lines[name] = (
                    f"{NAMES[what]} at {level} noise has {spreads[name]:.2g} times the spread of a sample "
                    f"({low:.2g} to {high:.3g} is usual): the student learns what no sample looks like; "
                    "bring advance_guidance (or teacher_guidance, where that is not given) nearer to 0"
                )
    return lines
