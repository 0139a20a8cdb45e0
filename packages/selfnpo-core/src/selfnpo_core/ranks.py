"""The processes that train together, which rows of a common batch are whose, and their noise.

Everything random is drawn for all of them from one seed, and each keeps its own part, so that a run makes the same
numbers whatever the number of processes. Noise is what there is much of: of it, a seed for each row is drawn for all,
and each process makes the rows that are its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process, number `index` of `count`."""

    index: int = 0
    count: int = 1

    def part(self, rows: int) -> slice:
        """This process's rows of `rows`, which `count` divides."""
        each, left = divmod(rows, self.count)
        assert not left
        return slice(self.index * each, (self.index + 1) * each)


ALONE = Ranks()


def row_noise(rows: int, own: slice | Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian noise (n, *shape) for those n of `rows` that are `own`: a slice, or a mask (rows,).

    `generator` gives one seed a row, whoever makes it; the noise comes from these, on the generator's own device.
    On the CPU torch uses 32 bits of a seed, so that among 100,000 rows about one pair has the same noise.
    """
    device = generator.device
    seeds = torch.randint(2**32, (rows,), generator=generator, device=device)
    seeds = seeds[own if isinstance(own, slice) else own.to(device)]
    noise, each = torch.empty((len(seeds), *shape), device=device), torch.Generator(device)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        torch.randn(shape, generator=each.manual_seed(seed), device=device, out=row)
    return noise
