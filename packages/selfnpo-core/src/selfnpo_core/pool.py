"""A streaming pool of denoising trajectories: training samples from prompts only.

The pool holds many samples (x_t, t, prompt), each on its own way down the denoising grid. An update
draws some and asks the teacher once for its estimate at x_t, which serves twice: x̂0 is the training
target, and with ε̂ it makes the next DDIM step. The advanced samples go back; those at the end of the
grid begin again from pure noise under a new prompt. No stored picture is needed, as the truncated
rollout of Self-NPO (2505.11777) needs one.

Batches are nearly independent if the pool is much larger than a batch and all grid points are present in
equal measure, which `stagger` brings about once, before the first update.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.schedule import CLEAN

Advance = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_t: (B, *S), t: (B,), t_next: (B,), prompt: (B,)) → x_next: (B, *S)."""


@dataclass(frozen=True)
class Batch:
    """Samples drawn from a pool. `t_next` is the next grid point, `CLEAN` after the last one."""

    rows: Tensor  # (B,) places in the pool, on the pool's device
    x_t: Tensor  # (B, *S)
    index: Tensor  # (B,) grid index
    t: Tensor  # (B,)
    t_next: Tensor  # (B,)
    prompt: Tensor  # (B,)


class TrajectoryPool:
    """`size` trajectories of samples of `shape` on `grid: (n,)`, under prompts 0 … num_prompts − 1.

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
    ):
        if size < 1 or num_prompts < 1:
            raise InputError(f"a pool of {size} samples and {num_prompts} prompts is empty: give at least one of each")
        self.grid = grid.to(device)
        self._timesteps = torch.cat([self.grid, self.grid.new_tensor([int(CLEAN)])])
        self._num_prompts, self._generator = num_prompts, generator
        self._x = torch.empty((size, *shape), device=device, dtype=dtype, pin_memory=pin)
        self._index = torch.zeros(size, device=device, dtype=torch.int64)
        self._prompt = torch.zeros(size, device=device, dtype=torch.int64)
        self._restart(torch.arange(size, device=device))

    def __len__(self) -> int:
        return len(self._x)

    def stagger(self, advance: Advance, batch_size: int = 64, device: torch.device | str | None = None) -> None:
        """Walk the trajectories down to different points, so that all grid points are equally present.

        Costs about size·(n − 1)/2 rows of forwards: `advance` is called on `device`, `batch_size` rows
        at most at a time.
        """
        size, n = len(self), len(self.grid)
        shuffle = torch.randperm(size, generator=self._generator, device=self._generator.device)
        target = (torch.arange(size, device=shuffle.device) % n)[shuffle].to(self._index.device)
        for index in range(n - 1):
            behind = ((self._index == index) & (target > index)).nonzero()[:, 0]
            for rows in torch.split(behind, batch_size) if len(behind) else ():
                batch = self._take(rows, device)
                self.put_back(batch, advance(batch.x_t, batch.t, batch.t_next, batch.prompt))

    def draw(self, batch_size: int, device: torch.device | str | None = None) -> Batch:
        """`batch_size` different trajectories at random, on `device` (the pool's own if not given)."""
        if not 1 <= batch_size <= len(self):
            raise InputError(f"cannot draw {batch_size} of {len(self)} trajectories: raise pool_size")
        rows = torch.randperm(len(self), generator=self._generator, device=self._generator.device)[:batch_size]
        return self._take(rows.to(self._x.device), device)

    def put_back(self, batch: Batch, x_next: Tensor) -> None:
        """Store the advanced samples x_next: (B, *S); those that were at the last grid point begin again."""
        last = self._index[batch.rows] == len(self.grid) - 1
        self._x[batch.rows] = x_next.detach().to(self._x)
        self._index[batch.rows] += 1
        self._restart(batch.rows[last])

    def state_dict(self) -> dict[str, Tensor]:
        state = {"x": self._x, "index": self._index, "prompt": self._prompt, "grid": self.grid}
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["x"].shape != self._x.shape or not torch.equal(state["grid"].to(self.grid), self.grid):
            raise InputError("the saved pool has another size, shape or grid: resume with the recipe it was saved by")
        for own, name in ((self._x, "x"), (self._index, "index"), (self._prompt, "prompt")):
            own.copy_(state[name])

    def _take(self, rows: Tensor, device: torch.device | str | None) -> Batch:
        index = self._index[rows]
        x = self._x[rows]
        if self._x.is_pinned():
            x = x.pin_memory()  # indexing leaves pinned memory
        here = (x, index, self.grid[index], self._timesteps[index + 1], self._prompt[rows])
        move = device is not None
        return Batch(rows, *(tensor.to(device, non_blocking=True) if move else tensor for tensor in here))

    def _restart(self, rows: Tensor) -> None:
        """Fresh noise and a new prompt at the grid's beginning."""
        g = self._generator
        noise = torch.randn((len(rows), *self._x.shape[1:]), generator=g, device=g.device)
        prompt = torch.randint(self._num_prompts, (len(rows),), generator=g, device=g.device)
        self._x[rows] = noise.to(self._x)
        self._prompt[rows] = prompt.to(self._prompt)
        self._index[rows] = 0
