"""A streaming pool of denoising trajectories: training samples from prompts only.

The pool holds many samples (x_t, t, prompt), each on its own way down the denoising grid. An update
draws some and asks the teacher once for its estimate at x_t, which serves twice: x̂0 is the training
target, and with ε̂ it makes the next DDIM step. The advanced samples go back; those at the end of the
grid begin again from pure noise under a new prompt. No stored picture is needed, as the truncated
rollout of Self-NPO (2505.11777) needs one.

Batches are nearly independent if the pool is much larger than a batch and all grid points are present in
equal measure, which `stagger` brings about once, before the first update. It may do so for a part of the pool, which is
drawn from at first: `walk_on` then brings the rest to its places while updates are made, a group at a time.

Nothing is noisier than a grid's beginning where that is the schedule's end, so there is nothing to train on there. A
pool whose `first` is 1 has no trajectory at the beginning when it is drawn from: those that begin again are walked a
step on.

A pool that keeps ends remembers of every trajectory what sample x0 its last walk ended in. These are finished samples
of the teacher as it is, at one step a row; they are drawn apart from what is advanced, and noised from t = 0 on. The
end of x_t's own walk would be no target at the re-noised x_s: the walk is deterministic, so its end is no sample of
P(x0 | x_t). For data N(0, 1) it is x_t itself, and the best student at x_s would say (alpha_s/alpha_t)·x_s, where the
true mean is alpha_s·x_s.

Processes share a pool. Its trajectories fall into as many parts as an update has rows, trajectory i into part
i mod rows; an update draws one from each part, and each process holds the parts of its own rows. All of them draw
all indices, prompts and seeds of noise and make the noise of their own, so which noise meets which prompt does not
depend on their number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.ranks import ALONE, Ranks, row_noise
from selfnpo_core.schedule import CLEAN

Advance = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_t: (B, *S), t: (B,), t_next: (B,), prompt: (B,)) → x_next: (B, *S)."""


@dataclass(frozen=True)
class Batch:
    """Samples drawn from a pool. `t_next` is the next grid point, `CLEAN` after the last one."""

    rows: Tensor  # (B,) places among this process's trajectories, on the pool's device
    x_t: Tensor  # (B, *S)
    index: Tensor  # (B,) grid index
    t: Tensor  # (B,)
    t_next: Tensor  # (B,)
    prompt: Tensor  # (B,)
    drawn: Tensor  # (R,) trajectories that all processes have drawn, on the pool's device
    drawn_t: Tensor  # (R,) timesteps at which they are


@dataclass(frozen=True)
class Ends:
    """Where walks ended: x0: (B, *S) under prompt: (B,)."""

    x0: Tensor
    prompt: Tensor


class TrajectoryPool:
    """`size` trajectories of samples of `shape` on `grid: (n,)`, under prompts 0 … num_prompts − 1.

    rows: of every draw, by all processes together; if not given, one process draws as many at a time as it likes.
    keep_ends: for `draw_ends`, which there are after `finish`. first: the grid index that draws begin at.

    All randomness comes from `generator`, on the generator's own device, so that a pool on another device
    holds the same numbers. The caller saves the generator's state; `state_dict` holds everything else.
    """

    def __init__(
        self,
        size: int,
        shape: tuple[int, ...],
        grid: Tensor,
        num_prompts: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pin: bool = False,
        rows: int | None = None,
        ranks: Ranks = ALONE,
        keep_ends: bool = False,
        first: int = 0,
    ):
        if size < 1 or num_prompts < 1:
            raise InputError(f"a pool of {size} samples and {num_prompts} prompts is empty: give at least one of each")
        if rows is not None and size < rows:
            raise InputError(f"cannot draw {rows} of {size} trajectories: raise pool_size")
        assert rows is not None or ranks == ALONE
        self.grid = grid.to(device)
        self._timesteps = torch.cat([self.grid, self.grid.new_tensor([int(CLEAN)])])
        self._num_prompts, self._generator = num_prompts, generator
        self._rows, self._ranks, self._first = rows, ranks, first
        self._filled = size  # trajectories, from the first on, that are drawn from
        everyones = torch.arange(size, device=device)
        self._own = everyones if rows is None else everyones[self._is_own(everyones)]
        self._place = torch.full((size,), -1, device=device)  # of a trajectory among this process's
        self._place[self._own] = torch.arange(len(self._own), device=device)
        self._x = torch.empty((len(self._own), *shape), device=device, dtype=dtype, pin_memory=pin)
        self._index = torch.zeros(size, device=device, dtype=torch.int64)
        self._target = torch.zeros_like(self._index)  # where a trajectory has to be before it is drawn
        self._prompt = torch.zeros(size, device=device, dtype=torch.int64)
        self._ends = torch.zeros_like(self._x, pin_memory=pin) if keep_ends else None
        self._end_prompt = torch.zeros_like(self._prompt)
        self._restart(everyones)

    def __len__(self) -> int:
        return len(self._index)

    def stagger(
        self,
        advance: Advance,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        count: int | None = None,
    ) -> None:
        """Walk the trajectories down to different points, so that all grid points are equally present.

        Costs about size·(n − 1)/2 rows of forwards: `advance` is called on `device`, `batch_size` rows
        at most at a time. Processes take as many turns as the one with most to do, so that those whose weights lie
        in pieces on all of them stay together. If `advance` raises, the pool is as it was before that call, and
        `stagger` goes on from there, in a pool with this one's state too.
        count: trajectories that are drawn from at first, all of them if not given; the rest is left to `walk_on`.
        """
        if not self._begun:
            self._filled = len(self) if count is None else min(count, len(self))
            assert self._rows is not None or self._filled == len(self)
            self._target.copy_(torch.cat([self._spread(n) for n in (self._filled, len(self) - self._filled)]))
        self._walk(self._filled, advance, batch_size, device)

    def finish(self, advance: Advance, batch_size: int = 64, device: torch.device | str | None = None) -> None:
        """Walk a new pool's trajectories to their ends, keep these, and begin all again: size·n rows of forwards.

        As `stagger` it may be stopped and goes on.
        """
        assert self._ends is not None
        end = len(self.grid)
        if self._begun and not (self._target == end).any():
            return
        self._target.fill_(end)
        self._walk(len(self), advance, batch_size, device)
        self._ends.copy_(self._x)
        self._end_prompt.copy_(self._prompt)
        self._restart(torch.arange(len(self), device=self._index.device))

    def walk_on(self, advance: Advance, batch_size: int = 64, device: torch.device | str | None = None) -> None:
        """A step of those that are on the way to where they may be drawn: begun again, or of the next group to be.

        A group is a trajectory of each of the `rows`, and is drawn from when all of it is in its place.
        """
        waiting = self._waiting()
        if not waiting.any():
            self._filled = len(self)
            return
        group = min(len(self), self._filled + (self._rows or 0))
        self._step(waiting[:group].nonzero()[:, 0], advance, batch_size, device)
        if not self._waiting()[:group].any():
            self._filled = group

    @property
    def rows_left(self) -> int:
        """Rows of forwards, of all processes, until the trajectories to be drawn from are in their places."""
        left = (self._target - self._index)[: self._filled].clamp(min=0).sum()
        if (self._target == len(self.grid)).any():  # after the walks to the ends come those to the places
            left += (torch.arange(len(self)) % len(self.grid)).sum().to(left)
        return int(left)

    @property
    def _begun(self) -> bool:
        """Whether walks have been made, or decided on."""
        return bool(self._index.any() or (self._target > self._first).any())

    def _waiting(self) -> Tensor:
        return self._target > self._index

    def _spread(self, count: int) -> Tensor:
        """Grid indices (count,) in equal measure, in random order."""
        g, points = self._generator, len(self.grid) - self._first
        shuffle = torch.randperm(count, generator=g, device=g.device)
        return (self._first + torch.arange(count, device=g.device) % points)[shuffle].to(self._index.device)

    def _walk(self, count: int, advance: Advance, batch_size: int, device: torch.device | str | None) -> None:
        """The first `count` to their targets, together from grid point to grid point."""
        while (waiting := self._waiting()[:count]).any():
            index = self._index[:count]
            self._step((waiting & (index == index[waiting].min())).nonzero()[:, 0], advance, batch_size, device)

    def _step(self, trajectories: Tensor, advance: Advance, batch_size: int, device: torch.device | str | None) -> None:
        """A denoising step of these, (m,) of all processes, each from where it is."""
        parts = self._parts(trajectories)
        for start in range(0, max(len(part) for part in parts), batch_size):
            together = [part[start : start + batch_size] for part in parts]
            own = together[self._ranks.index]
            idle = not len(own)
            who = self._own[:1] if idle else own
            index = self._index[who].clamp(max=len(self.grid) - 1)
            here = (self._x[self._place[who]], self._timesteps[index], self._timesteps[index + 1], self._prompt[who])
            advanced = advance(*(tensor if device is None else tensor.to(device) for tensor in here))
            if not idle:
                self._x[self._place[own]] = advanced.detach().to(self._x)
            self._index[torch.cat(together)] += 1

    def draw(self, batch_size: int | None = None, device: torch.device | str | None = None) -> Batch:
        """Different trajectories at random, on `device` (the pool's own if not given).

        batch_size: how many; not for a pool of fixed `rows`, which gives this process's part of so many.
        """
        own, drawn = self._choose(batch_size)
        return self._take(own, drawn, device)

    def draw_ends(self, batch_size: int | None = None, device: torch.device | str | None = None) -> Ends:
        """The last ends of different trajectories at random, wherever these are now; as many as of `draw`."""
        assert self._ends is not None, "a pool with keep_ends has ends"
        own, _ = self._choose(batch_size)
        x0, prompt = self._ends[self._place[own]], self._end_prompt[own]
        return Ends(x0, prompt) if device is None else Ends(x0.to(device), prompt.to(device))

    def _choose(self, batch_size: int | None) -> tuple[Tensor, Tensor]:
        """This process's trajectories, and those of all."""
        if self._rows is None:
            drawn = self._draw_any(len(self) if batch_size is None else batch_size)
            return drawn, drawn
        assert batch_size in (None, self._rows // self._ranks.count)
        drawn = self._draw_one_of_each(self._rows)
        return drawn[self._ranks.part(self._rows)], drawn

    def put_back(self, batch: Batch, x_next: Tensor) -> None:
        """Store the advanced samples x_next: (B, *S); those that were at the last grid point begin again."""
        self._x[batch.rows] = x_next.detach().to(self._x)
        last = batch.drawn[self._index[batch.drawn] == len(self.grid) - 1]
        if self._ends is not None:
            ended = self._place[last[self._is_own(last)]]
            self._ends[ended] = self._x[ended]
            self._end_prompt[last] = self._prompt[last]
        self._index[batch.drawn] += 1
        self._restart(last)

    def state_dict(self) -> dict[str, Tensor]:
        """`x` and `end` hold this process's trajectories, in the order of its `owners`; the rest is of all."""
        state = {"x": self._x, "index": self._index, "prompt": self._prompt, "grid": self.grid}
        state |= {"target": self._target, "filled": torch.tensor(self._filled)}
        if self._ends is not None:
            state |= {"end": self._ends, "end_prompt": self._end_prompt}
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """state: with `x` and `end` of all processes' trajectories."""
        shape = (len(self), *self._x.shape[1:])
        if state["x"].shape != shape or not torch.equal(state["grid"].to(self.grid), self.grid):
            raise InputError("the saved pool has another size, shape or grid: resume with the recipe it was saved by")
        self._x.copy_(state["x"][self._own.to(state["x"].device)])
        if self._ends is not None:
            self._ends.copy_(state["end"][self._own.to(state["end"].device)])
            self._end_prompt.copy_(state["end_prompt"])
        self._index.copy_(state["index"])
        self._target.copy_(state.get("target", torch.full_like(self._index, self._first)))
        self._filled = int(state.get("filled", len(self)))
        if self._filled < (self._rows or 0):
            raise InputError(
                f"{self._filled} trajectories of the saved pool can be drawn so far, and an update draws {self._rows}: "
                "go on with as many rows as before"
            )
        self._prompt.copy_(state["prompt"])

    def owners(self) -> list[Tensor]:
        """Of every process, its trajectories in the order of its `x` and `end`."""
        everyones = torch.arange(len(self))
        if self._rows is None:
            return [everyones]
        each = self._rows // self._ranks.count
        return [everyones[everyones % self._rows // each == rank] for rank in range(self._ranks.count)]

    def _is_own(self, trajectories: Tensor) -> Tensor:
        if self._rows is None:
            return torch.ones_like(trajectories, dtype=torch.bool)
        part = self._ranks.part(self._rows)
        row = trajectories % self._rows
        own: Tensor = (row >= part.start) & (row < part.stop)
        return own

    def _parts(self, trajectories: Tensor) -> list[Tensor]:
        """Of each process, its own among these."""
        if self._rows is None:
            return [trajectories]
        owner = trajectories % self._rows // (self._rows // self._ranks.count)
        return [trajectories[owner == rank] for rank in range(self._ranks.count)]

    def _draw_any(self, count: int) -> Tensor:
        if not 1 <= count <= len(self):
            raise InputError(f"cannot draw {count} of {len(self)} trajectories: raise pool_size")
        g = self._generator
        return torch.randperm(len(self), generator=g, device=g.device)[:count].to(self._x.device)

    def _draw_one_of_each(self, parts: int) -> Tensor:
        """One trajectory of every part, uniformly: part j holds j, j + parts, j + 2·parts, …, as far as is filled."""
        g = self._generator
        uniform = torch.rand(parts, generator=g, device=g.device, dtype=torch.float64)
        row = torch.arange(parts, device=g.device)
        sizes = (self._filled - row + parts - 1) // parts
        return (row + parts * (uniform * sizes).long()).to(self._x.device)

    def _take(self, own: Tensor, drawn: Tensor, device: torch.device | str | None) -> Batch:
        index, places = self._index[own], self._place[own]
        x = self._x[places]
        if self._x.is_pinned():
            x = x.pin_memory()  # indexing leaves pinned memory
        here = (x, index, self.grid[index], self._timesteps[index + 1], self._prompt[own])
        move = device is not None
        x, index, t, t_next, prompt = (tensor.to(device, non_blocking=True) if move else tensor for tensor in here)
        return Batch(places, x, index, t, t_next, prompt, drawn=drawn, drawn_t=self.grid[self._index[drawn]])

    def _restart(self, trajectories: Tensor) -> None:
        """Fresh noise and a new prompt at the grid's beginning."""
        g, own = self._generator, self._is_own(trajectories)
        noise = row_noise(len(trajectories), own, tuple(self._x.shape[1:]), g)
        prompt = torch.randint(self._num_prompts, (len(trajectories),), generator=g, device=g.device)
        self._x[self._place[trajectories[own]]] = noise.to(self._x)
        self._prompt[trajectories] = prompt.to(self._prompt)
        self._index[trajectories], self._target[trajectories] = 0, self._first
