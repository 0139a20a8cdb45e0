"""Where training samples come from: the teacher's own weak-guidance trajectories, from pure noise and prompts only.

    pool        one step a trajectory a time: the estimate that is the target also makes the next step
    truncated   from noise to a random point of the grid, K steps or more down it; the target is x̂0 there
    full        from noise to the end of the grid; the target is the sample itself (the paper's baseline)

(Self-NPO, 2505.11777. Its own code starts truncated rollouts at noised pictures of a data set; here there is none.)
A source first draws what an update needs, then hands it out in parts that fit one backward pass, so that gradient
accumulation sees the very rows that one large batch would.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from selfnpo_core.denoise import ddim_step
from selfnpo_core.guidance import NULL, Denoise, guide, guided_estimate
from selfnpo_core.pool import Batch, TrajectoryPool
from selfnpo_core.prediction import Estimate
from selfnpo_core.rollout import full_simulation
from selfnpo_core.schedule import CLEAN, NoiseSchedule
from selfnpo_core.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the teacher says about x_t: (B, *S) at t: (B,) under prompt: (B,); `strong` where the objective has it."""

    x_t: Tensor
    t: Tensor
    prompt: Tensor
    weak: Estimate
    strong: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher's estimates under weak and, for some objectives, strong guidance."""

    denoise: Denoise
    weak: float
    strong: float | None = None

    def step(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
        """The weak estimate, for a denoising step."""
        return guided_estimate(self.denoise, x_t, t, prompt, self.weak)

    def look(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Look:
        """Both estimates. The strong one needs both branches, and the weak one is then made of the same two."""
        if self.strong is None:
            return Look(x_t=x_t, t=t, prompt=prompt, weak=self.step(x_t, t, prompt), strong=None)
        null = torch.full_like(prompt, NULL)
        both = self.denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([null, prompt]))
        (x0_null, x0_prompt), (eps_null, eps_prompt) = both.x0.chunk(2), both.eps.chunk(2)
        negative, positive = Estimate(x0_null, eps_null), Estimate(x0_prompt, eps_prompt)
        weak, strong = (guide(negative, positive, 1 + w) for w in (self.weak, self.strong))
        return Look(x_t=x_t, t=t, prompt=prompt, weak=weak, strong=strong)


class Source(ABC):
    """Yields the looks of one update: `rows` rows, at most `batch_size` at a time."""

    @abstractmethod
    def looks(self, rows: int, batch_size: int) -> Iterator[Look]: ...

    def warm_up(self, batch_size: int) -> None:
        """One-off preparation before the first update."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        assert not state


class PoolSource(Source):
    """The streaming pool: one teacher forward a row and update."""

    def __init__(self, pool: TrajectoryPool, teacher: Teacher, schedule: NoiseSchedule, device: torch.device):
        self._pool, self._teacher, self._schedule, self._device = pool, teacher, schedule, device

    @torch.no_grad()
    def looks(self, rows: int, batch_size: int) -> Iterator[Look]:
        drawn = self._pool.draw(rows)
        for part in _split(drawn, batch_size):
            x_t, t, t_next, prompt = (
                tensor.to(self._device) for tensor in (part.x_t, part.t, part.t_next, part.prompt)
            )
            look = self._teacher.look(x_t, t, prompt)
            self._pool.put_back(part, ddim_step(look.weak, self._schedule.at(t_next, like=x_t)))
            yield look

    @torch.no_grad()
    def warm_up(self, batch_size: int) -> None:
        self._pool.stagger(self._advance, batch_size, self._device)

    def _advance(self, x_t: Tensor, t: Tensor, t_next: Tensor, prompt: Tensor) -> Tensor:
        return ddim_step(self._teacher.step(x_t, t, prompt), self._schedule.at(t_next, like=x_t))

    def state_dict(self) -> dict[str, Tensor]:
        return self._pool.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._pool.load_state_dict(state)


class FreshSource(Source):
    """Every update starts from noise: truncated after at least `truncation_steps` steps, or simulated to the end."""

    def __init__(
        self,
        teacher: Teacher,
        schedule: NoiseSchedule,
        grid: Tensor,
        *,
        shape: tuple[int, ...],
        num_prompts: int,
        generator: torch.Generator,
        device: torch.device,
        fewest_steps: int | None,
    ):
        self._teacher, self._schedule, self._grid, self._shape = teacher, schedule, grid.to(device), shape
        self._num_prompts, self._generator, self._device = num_prompts, generator, device
        self._fewest_steps = fewest_steps

    @torch.no_grad()
    def looks(self, rows: int, batch_size: int) -> Iterator[Look]:
        x = torch.randn((rows, *self._shape), generator=self._generator)
        prompt = torch.randint(self._num_prompts, (rows,), generator=self._generator)
        lowest = 0 if self._fewest_steps is None else self._fewest_steps
        stop = torch.randint(lowest, len(self._grid), (rows,), generator=self._generator)
        for part in torch.arange(rows).split(batch_size):
            here = (tensor[part].to(self._device) for tensor in (x, prompt, stop))
            yield self._simulate(*here) if self._fewest_steps is None else self._truncate(*here)

    def _simulate(self, x: Tensor, prompt: Tensor, _: Tensor) -> Look:
        weak = self._teacher
        x0 = full_simulation(weak.denoise, self._schedule, self._grid, x, prompt, weak.weak)
        clean = torch.full((len(x),), CLEAN, device=x.device, dtype=self._grid.dtype)
        return Look(x_t=x0, t=clean, prompt=prompt, weak=Estimate(x0, torch.zeros_like(x0)), strong=None)

    def _truncate(self, x: Tensor, prompt: Tensor, stop: Tensor) -> Look:
        """Every row walks to its own stop: (B,); those that are there wait for the last, then all are looked at."""
        for index in range(int(stop.max())):
            walking = (stop > index).nonzero()[:, 0]
            t = self._grid[index].expand(len(walking))
            estimate = self._teacher.step(x[walking], t, prompt[walking])
            t_next = self._grid[index + 1].expand(len(walking))
            x[walking] = ddim_step(estimate, self._schedule.at(t_next, like=x))
        return self._teacher.look(x, self._grid[stop], prompt)


def make_source(
    recipe: Recipe,
    teacher: Teacher,
    schedule: NoiseSchedule,
    *,
    shape: tuple[int, ...],
    num_prompts: int,
    generator: torch.Generator,
    device: torch.device,
) -> Source:
    """The recipe's `rollout`. All randomness comes from `generator`, a CPU one, whatever the device."""
    grid = schedule.grid(recipe.grid_steps)
    if recipe.rollout == "pool":
        home = device if recipe.pool_device == "device" else torch.device("cpu")
        pool = TrajectoryPool(recipe.pool_size, shape, grid, num_prompts, generator, device=home)
        return PoolSource(pool, teacher, schedule, device)
    return FreshSource(
        teacher,
        schedule,
        grid,
        shape=shape,
        num_prompts=num_prompts,
        generator=generator,
        device=device,
        fewest_steps=recipe.truncation_steps if recipe.rollout == "truncated" else None,
    )


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    fields = ("rows", "x_t", "index", "t", "t_next", "prompt")
    for parts in zip(*(getattr(batch, name).split(size) for name in fields), strict=True):
        yield Batch(*parts)
