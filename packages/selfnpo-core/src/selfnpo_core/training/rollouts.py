"""Where training samples come from: the model's own guided trajectories, from pure noise and prompts only.

    pool        one step a trajectory a time: the estimate that is the target also makes the next step
    truncated   from noise to a random point of the grid, K steps or more down it; the target is x̂0 there
    full        from noise to the end of the grid; the target is the sample itself (the paper's baseline)
    samples     finished ones that the base drew beforehand (`samples`), each again and again; no teacher

These are walks; what is made on finished samples, and which source a recipe wants, is in `sources`.

(Self-NPO, 2505.11777. Its own code starts truncated rollouts at noised pictures of a data set; here there is none.)
A source first draws what an update needs, then hands it out in parts that fit one backward pass, so that gradient
accumulation sees the very rows that one large batch would, and is told when all were used. What is random is drawn for
all processes (of noise, its seeds), and each hands out its own rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from selfnpo_core.denoise import ddim_step
from selfnpo_core.guidance import Denoise, both_branches, guide, guided_estimate
from selfnpo_core.pool import Advance, Batch, TrajectoryPool
from selfnpo_core.prediction import Estimate
from selfnpo_core.ranks import ALONE, Ranks, row_noise
from selfnpo_core.rollout import full_simulation
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.training.recipe import Recipe

Watch = Callable[[Tensor, Tensor, Tensor], None]
"""(x_t: (B, *S), t: (B,), x̂0: (B, *S)): is shown what trajectories are advanced by."""


def unwatched(x_t: Tensor, t: Tensor, x0: Tensor) -> None:
    pass


SHARED = ("x", "end")
"""Tensors of a source's `state_dict` of which each process has the rows of its own trajectories."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the teacher says about x_t: (B, *S) at t: (B,) under prompt: (B,).

    weak: the target. strong: where the objective has it. advance: where x_t is to go on, what it is advanced by.
    """

    x_t: Tensor
    t: Tensor
    prompt: Tensor
    weak: Estimate
    strong: Estimate | None
    advance: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher's estimates under weak and, for some objectives, strong guidance.

    advance: the guidance of what advances trajectories; the weak one if not given.
    """

    denoise: Denoise
    weak: float
    strong: float | None = None
    advance: float | None = None

    @property
    def _advance(self) -> float:
        return self.weak if self.advance is None else self.advance

    def step(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
        """For a denoising step."""
        return guided_estimate(self.denoise, x_t, t, prompt, self._advance)

    def look(self, x_t: Tensor, t: Tensor, prompt: Tensor, *, advance: bool = False) -> Look:
        """All estimates that are wanted, of one forward. advance: whether the one for a denoising step is.

        Where they differ in guidance they are made of the same two branches.
        """
        at = {"x_t": x_t, "t": t, "prompt": prompt}
        if self.strong is None and not (advance and self._advance != self.weak):
            weak = guided_estimate(self.denoise, **at, w=self.weak)
            return Look(**at, weak=weak, strong=None, advance=weak if advance else None)
        negative, positive = both_branches(self.denoise, **at)
        weak, step = (guide(negative, positive, 1 + w) for w in (self.weak, self._advance))
        strong = None if self.strong is None else guide(negative, positive, 1 + self.strong)
        return Look(**at, weak=weak, strong=strong, advance=step if advance else None)


def make_teacher(recipe: Recipe, denoise: Denoise) -> Teacher:
    """The teacher that the recipe's objective asks."""
    strong = recipe.strong_guidance if recipe.needs_strong else None
    return Teacher(denoise=denoise, weak=recipe.teacher_guidance, strong=strong, advance=recipe.advance_guidance)


class RolloutSource(ABC):
    """Draws the rows of one update, then yields the teacher's looks at this process's, `batch_size` rows at a time.

    An update is `draw`, all of `looks`, `put_back`, in this order.
    """

    @abstractmethod
    def draw(self) -> "Drawn": ...

    @abstractmethod
    def looks(self, drawn: Any, batch_size: int) -> Iterator[Look]: ...

    def put_back(self) -> None:  # noqa: B027
        """All that was drawn has been looked at, and what the next draws are from goes on to where the looks lead."""

    def warm_up(self, batch_size: int, check: Callable[[], None], watch: Watch = unwatched) -> None:
        """One-off preparation before the first update; `check` is called often and may raise to stop it.

        Called again, it goes on where it was stopped, also in a source with this one's state.
        """
        check()

    @property
    def rows_left(self) -> int:
        """Rows of forwards, of all processes, that `warm_up` has still to make, once it has begun."""
        return 0

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        assert not state

    def owners(self) -> list[Tensor]:
        """Of every process, which of all rows its tensors named in `SHARED` have; empty where there are none."""
        return []


class Drawn(Protocol):
    """What a source has drawn: at least the timesteps (R,) at which all processes' rows are to be looked at."""

    @property
    def drawn_t(self) -> Tensor: ...


class PoolSource(RolloutSource):
    """The streaming pool: one teacher forward a row and update, which also makes the next step of what was drawn.

    start: trajectories that are walked to their places before the first update, all if not given; the rest is walked
    while updates are made, by up to a step a row and update.
    """

    def __init__(
        self,
        pool: TrajectoryPool,
        teacher: Teacher,
        schedule: NoiseSchedule,
        device: torch.device,
        start: int | None = None,
    ):
        self._pool, self._teacher, self._schedule, self._device = pool, teacher, schedule, device
        self._start, self._batch_size = start, 1
        self._out: Batch | None = None  # drawn and not yet put back
        self._advanced: list[Tensor] = []

    def draw(self) -> Batch:
        """Raises `RuntimeError` where the last draw was not put back: its trajectories would stand still."""
        if self._out is not None:
            raise RuntimeError("trajectories were drawn and not put back: `put_back` ends an update")
        self._out, self._advanced = self._pool.draw(device=self._device), []
        return self._out

    @torch.no_grad()
    def looks(self, drawn: Batch, batch_size: int) -> Iterator[Look]:
        self._batch_size = batch_size
        for part in torch.arange(len(drawn.t), device=self._device).split(batch_size):
            x_t, level = drawn.x_t[part], self._schedule.at(drawn.t_next[part], like=drawn.x_t)
            look = self._teacher.look(x_t, drawn.t[part], drawn.prompt[part], advance=True)
            assert look.advance is not None
            self._advanced.append(ddim_step(look.advance, level))
            yield look

    @torch.no_grad()
    def put_back(self) -> None:
        """The trajectories go back, one step further, and those that cannot be drawn yet are walked on.

        Raises `RuntimeError` unless all of them were looked at.
        """
        made = sum(len(part) for part in self._advanced)
        if self._out is None or made != len(self._out.t):
            raise RuntimeError(f"{made} trajectories were looked at, not all that were drawn: use all looks")
        self._pool.put_back(self._out, torch.cat(self._advanced))
        self._out, self._advanced = None, []
        self._pool.walk_on(self._advance(), self._batch_size, self._device)

    @torch.no_grad()
    def warm_up(self, batch_size: int, check: Callable[[], None], watch: Watch = unwatched) -> None:
        self._pool.stagger(self._advance(check, watch), batch_size, self._device, self._start)

    @property
    def rows_left(self) -> int:
        return self._pool.rows_left

    def _advance(self, check: Callable[[], None] = lambda: None, watch: Watch = unwatched) -> Advance:
        def advance(x_t: Tensor, t: Tensor, t_next: Tensor, prompt: Tensor) -> Tensor:
            check()
            estimate = self._teacher.step(x_t, t, prompt)
            watch(x_t, t, estimate.x0)
            return ddim_step(estimate, self._schedule.at(t_next, like=x_t))

        return advance

    def state_dict(self) -> dict[str, Tensor]:
        return self._pool.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._pool.load_state_dict(state)
        self._out, self._advanced = None, []

    def owners(self) -> list[Tensor]:
        return self._pool.owners()


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Noise x: (B, *S), prompts (B,), and the grid indices (B,) where the walks are to stop, at timesteps t: (B,).

    steps: the longest walk of any process.
    """

    x: Tensor
    prompt: Tensor
    stop: Tensor
    t: Tensor
    drawn_t: Tensor
    steps: int


class FreshSource(RolloutSource):
    """Every update starts from noise: truncated after at least `fewest_steps` steps, or (None) simulated to the end."""

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
        rows: int,
        ranks: Ranks = ALONE,
    ):
        self._teacher, self._schedule, self._grid, self._shape = teacher, schedule, grid.to(device), shape
        self._num_prompts, self._generator, self._device = num_prompts, generator, device
        self._rows, self._ranks = rows, ranks
        self._fewest_steps = None if fewest_steps is None else max(fewest_steps, schedule.first_trained(grid))

    def draw(self) -> Fresh:
        rows, part = self._rows, self._ranks.part(self._rows)
        x = row_noise(rows, part, self._shape, self._generator).to(self._device)
        prompt = torch.randint(self._num_prompts, (rows,), generator=self._generator)
        if self._fewest_steps is None:
            stop = torch.full_like(prompt, len(self._grid))
            t = self._schedule.clean.to(self._grid).expand(rows)
        else:
            stop = torch.randint(self._fewest_steps, len(self._grid), (rows,), generator=self._generator)
            t = self._grid[stop.to(self._device)]
        prompt, stop, steps = prompt[part].to(self._device), stop[part].to(self._device), int(stop.max())
        return Fresh(x=x, prompt=prompt, stop=stop, t=t[part], drawn_t=t, steps=steps)

    @torch.no_grad()
    def looks(self, drawn: Fresh, batch_size: int) -> Iterator[Look]:
        walk = self._simulate if self._fewest_steps is None else self._truncate
        for part in torch.arange(len(drawn.t), device=self._device).split(batch_size):
            yield walk(drawn.x[part], drawn.prompt[part], drawn.stop[part], drawn.t[part], drawn.steps)

    def _simulate(self, x: Tensor, prompt: Tensor, _stop: Tensor, t: Tensor, _steps: int) -> Look:
        weak = self._teacher
        x0 = full_simulation(weak.denoise, self._schedule, self._grid, x, prompt, weak.weak)
        return Look(x_t=x0, t=t, prompt=prompt, weak=Estimate(x0, torch.zeros_like(x0)), strong=None)

    def _truncate(self, x: Tensor, prompt: Tensor, stop: Tensor, t: Tensor, steps: int) -> Look:
        """Every row walks to its own stop: (B,); those that are there wait for the last, then all are looked at.

        Processes make as many steps as the longest walk of any, so that those whose weights lie in pieces on all of
        them stay together: where nobody is left to walk, one row is asked about in vain.
        """
        for index in range(steps if self._ranks.count > 1 else int(stop.max())):
            walking = (stop > index).nonzero()[:, 0]
            asked = walking if len(walking) else stop.new_zeros(1)
            here, there = (self._grid[i].expand(len(asked)) for i in (index, index + 1))
            estimate = self._teacher.step(x[asked], here, prompt[asked])
            if len(walking):
                x[walking] = ddim_step(estimate, self._schedule.at(there, like=x))
        return self._teacher.look(x, t, prompt)
