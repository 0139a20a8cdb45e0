"""Updates on finished samples, which are noised from t = 0 on, and the source that a recipe wants.

SampleSource     those that were drawn beforehand, each again and again; no teacher is asked
EndpointSource   those that a pool's trajectories end in, as they come; one step of the teacher a row
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.denoise import ddim_step
from selfnpo_core.pool import Batch, Ends, TrajectoryPool
from selfnpo_core.prediction import Estimate
from selfnpo_core.ranks import ALONE, Ranks
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.training.accelerators import seed_for
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.rollouts import FreshSource, Look, PoolSource, RolloutSource, Teacher, Watch, unwatched
from selfnpo_core.training.samples import Samples

SHUFFLE = (1 << 20) + 2
"""A stream of random numbers, as those of `samples`."""


def finished_look(x0: Tensor, prompt: Tensor, clean: Tensor) -> Look:
    """At samples x0: (B, *S) under prompt: (B,), which are their own targets. clean: their timestep, ()."""
    t = clean.to(x0.device).expand(len(x0))
    return Look(x_t=x0, t=t, prompt=prompt, weak=Estimate(x0, torch.zeros_like(x0)), strong=None)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """This process's rows (B,) of the finished samples, and the timestep of clean data for all processes': (R,)."""

    rows: Tensor
    drawn_t: Tensor


class SampleSource(RolloutSource):
    """Finished samples, in a new seeded order each time that all were used. The teacher is not asked."""

    def __init__(
        self,
        samples: Samples,
        schedule: NoiseSchedule,
        device: torch.device,
        *,
        seed: int,
        rows: int,
        ranks: Ranks = ALONE,
    ):
        self._samples, self._device, self._seed, self._rows, self._ranks = samples, device, seed, rows, ranks
        self._clean = schedule.clean
        self._used = 0

    def draw(self) -> Chosen:
        count, last = self._samples.plan.count, self._used + self._rows
        first_pass = self._used // count
        orders = torch.cat([self._order(number) for number in range(first_pass, -(-last // count))])
        rows = orders[self._used - first_pass * count :][: self._rows]
        return Chosen(rows=rows[self._ranks.part(self._rows)], drawn_t=self._clean.expand(self._rows))

    def looks(self, drawn: Chosen, batch_size: int) -> Iterator[Look]:
        for rows in drawn.rows.split(batch_size):
            x0, prompt = (part.to(self._device) for part in self._samples.read(rows))
            yield finished_look(x0, prompt, self._clean)

    def put_back(self) -> None:
        self._used += self._rows

    def use(self, samples: Samples, *, anew: bool) -> None:
        """Of another round. anew: from their first use on; else as many as `load_state_dict` says were used."""
        self._samples = samples
        if anew:
            self._used = 0

    def _order(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self._seed, SHUFFLE, number, self._samples.plan.round))
        return torch.randperm(self._samples.plan.count, generator=generator)

    def state_dict(self) -> dict[str, Tensor]:
        return {"used": torch.tensor(self._used)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._used = int(state["used"])


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """Trajectories to be advanced, and ends of others to train on; drawn_t: (R,), of clean data, for all processes."""

    batch: Batch
    ends: Ends
    drawn_t: Tensor


class EndpointSource(PoolSource):
    """A pool that is advanced as ever, while updates are made on what its trajectories ended in.

    Each end is used as often as the grid has points, on average.
    """

    def draw(self) -> Streamed:  # type: ignore[override]
        batch, ends = super().draw(), self._pool.draw_ends(device=self._device)
        return Streamed(batch=batch, ends=ends, drawn_t=self._schedule.clean.expand(len(batch.drawn)))

    @torch.no_grad()
    def looks(self, drawn: Streamed, batch_size: int) -> Iterator[Look]:  # type: ignore[override]
        self._batch_size = batch_size
        batch, ends, clean = drawn.batch, drawn.ends, self._schedule.clean
        for part in torch.arange(len(batch.t), device=self._device).split(batch_size):
            step = self._teacher.step(batch.x_t[part], batch.t[part], batch.prompt[part])
            self._advanced.append(ddim_step(step, self._schedule.at(batch.t_next[part], like=batch.x_t)))
            yield finished_look(ends.x0[part], ends.prompt[part], clean)

    @torch.no_grad()
    def warm_up(self, batch_size: int, check: Callable[[], None], watch: Watch = unwatched) -> None:
        self._pool.finish(self._advance(check, watch), batch_size, self._device)
        super().warm_up(batch_size, check, watch)


def make_source(
    recipe: Recipe,
    teacher: Teacher,
    schedule: NoiseSchedule,
    *,
    shape: tuple[int, ...],
    num_prompts: int,
    generator: torch.Generator,
    device: torch.device,
    ranks: Ranks = ALONE,
    samples: Samples | None = None,
) -> RolloutSource:
    """The recipe's `rollout`. All randomness comes from `generator`, a CPU one, whatever the device.

    generator: in the same state on all processes. samples: for `rollout: samples`.
    """
    grid, rows = schedule.grid(recipe.grid_steps), recipe.update_rows * ranks.count
    if recipe.rollout == "samples":
        assert samples is not None, "rollout samples needs finished samples"
        return SampleSource(samples, schedule, device, seed=recipe.seed, rows=rows, ranks=ranks)
    if recipe.rollout == "pool":
        home = device if recipe.pool_device == "device" else torch.device("cpu")
        pin = home.type == "cpu" and device.type == "cuda"
        shared: dict[str, Any] = {"rows": rows, "ranks": ranks}
        ends = recipe.pool_target == "endpoint"
        shared |= {"device": home, "pin": pin, "keep_ends": ends}
        if not ends:
            shared["first"] = schedule.first_trained(grid)
        pool = TrajectoryPool(recipe.pool_size, shape, grid, num_prompts, generator, **shared)
        if ends:
            return EndpointSource(pool, teacher, schedule, device)
        return PoolSource(pool, teacher, schedule, device, recipe.first_trajectories(ranks.count))
    return FreshSource(
        teacher,
        schedule,
        grid,
        shape=shape,
        num_prompts=num_prompts,
        generator=generator,
        device=device,
        fewest_steps=recipe.truncation_steps if recipe.rollout == "truncated" else None,
        rows=rows,
        ranks=ranks,
    )
