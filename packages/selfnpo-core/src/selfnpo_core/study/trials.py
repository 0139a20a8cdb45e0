"""What one participant sees: every pair once, in random order, a random half of them with arm a on the left.

Sides are balanced twice. Within a participant arm a is on the left in half of the pairs, up to one. And participants
2k and 2k + 1 see every pair with its sides exchanged. Between the pairs lie attention checks: one sample, and the same
one damaged, whose answer is known.
"""

import hashlib
from dataclasses import dataclass

import torch

DAMAGED = "-damaged"
ANSWERS = ("left", "right", "same")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Two samples beside each other. left, right: arm a or b of the pair, or for a check one of them damaged."""

    pair: int
    left: str
    right: str

    @property
    def check(self) -> bool:
        """Whether it is an attention check."""
        return DAMAGED in self.left + self.right

    def choice(self, answer: str) -> str:
        """What an answer preferred: an arm, or "same"."""
        return {"left": self.left, "right": self.right, "same": "same"}[answer]

    def passed(self, answer: str) -> bool:
        """Whether a check's undamaged sample was preferred."""
        return answer != "same" and not self.choice(answer).endswith(DAMAGED)


def default_checks(pairs: int) -> int:
    """One check for ten pairs, and at least one."""
    return max(1, round(pairs / 10))


def plan_trials(pairs: int, checks: int, *, seed: int, participant: int) -> list[Trial]:
    """The trials of participant number 0, 1, … The first is no check, where there are pairs enough."""
    own = _generator(seed, "participant", participant)
    shared = _generator(seed, "sides", participant // 2)
    a_left = _half(pairs, shared, flip=participant % 2 == 1)
    trials = [_trial(pair, a_left[pair]) for pair in torch.randperm(pairs, generator=own).tolist()]
    for check in _checks(pairs, checks, own):
        place = 1 + int(torch.randint(len(trials), (), generator=own))
        trials.insert(place, check)
    return trials


def _trial(pair: int, a_left: bool) -> Trial:
    return Trial(pair=pair, left="a", right="b") if a_left else Trial(pair=pair, left="b", right="a")


def _checks(pairs: int, count: int, generator: torch.Generator) -> list[Trial]:
    """Checks of random pairs and balanced arms; the damaged one is on the left in half of them."""
    arm_a, damaged_left = _half(count, generator), _half(count, generator)
    found = []
    for k in range(count):
        arm = "a" if arm_a[k] else "b"
        sides = (arm + DAMAGED, arm) if damaged_left[k] else (arm, arm + DAMAGED)
        pair = int(torch.randint(pairs, (), generator=generator))
        found.append(Trial(pair=pair, left=sides[0], right=sides[1]))
    return found


def _half(count: int, generator: torch.Generator, *, flip: bool = False) -> list[bool]:
    """As many true as false, up to one, in random order. flip: the exact opposite."""
    odd = int(torch.randint(2, (), generator=generator))
    values = (torch.arange(count) + odd) % 2 == 0
    return [bool(value) != flip for value in values[torch.randperm(count, generator=generator)]]


def _generator(seed: int, *purpose: object) -> torch.Generator:
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
