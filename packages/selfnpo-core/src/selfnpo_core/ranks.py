"""The processes that train together, and which rows of a common batch are whose.

Everything random is drawn for all of them from one seed, and each keeps its own part, so that a run makes the same
numbers whatever the number of processes.
"""

from dataclasses import dataclass


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
