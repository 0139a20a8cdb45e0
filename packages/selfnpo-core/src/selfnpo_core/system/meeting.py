"""Processes wait for one another for as long as one works, and not for one that is gone.

Every process gives signs of life from a thread of its own, in the store through which the processes of a run found one
another. Who waits watches the signs of the others: one that is at work gives them, one that was stopped or killed does
not. All talk with the store is the thread's, as the store itself may hang with the process that holds it.
"""

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from selfnpo_core.errors import RunError

_GONE = -(10**12)
"""Added to its own count by a process that ends; no count of signs comes near."""


class Meetings:
    """Points that all processes come to, one after the other; each goes on when the last has come.

    store: a `torch.distributed.Store` that all processes share. rank, count: this process, of how many. patience: how
    long one may be without a sign of life. Close it to end its thread.
    """

    def __init__(self, store: Any, rank: int, count: int, patience: timedelta):
        self._store = store
        self._rank, self._others = rank, [other for other in range(count) if other != rank]
        self._patience = patience.total_seconds()
        self._beat = min(self._patience / 5, 5.0)
        self._meeting, self._reached, self._failure = 0, 0, ""
        self._answered = time.monotonic()
        self._signs: dict[int, int] = {}
        self._seen: dict[int, float] = {}
        self._wake, self._told, self._over = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._attend, name="selfnpo-meetings", daemon=True)
        self._thread.start()

    def meet(self) -> None:
        """Wait for all. Raises `RunError` if one has ended, or gives no sign of life."""
        self._seen = dict.fromkeys(self._others, time.monotonic())
        self._meeting += 1
        self._wake.set()
        while self._reached < self._meeting:
            if lost := self._failure or self._lost():
                raise RunError(lost)
            self._told.wait(min(self._beat, 1.0))
            self._told.clear()

    def close(self) -> None:
        """Let the others know that this process does not come to another meeting."""
        self._over.set()
        self._wake.set()
        self._thread.join(timeout=30)  # which aborts the interpreter if it outlives it

    def _lost(self) -> str | None:
        oldest = time.monotonic() - self._patience
        if self._answered < oldest:
            return f"another process of this run has ended or hangs (the store is silent for {self._patience:g} s)"
        silent = [rank for rank, when in self._seen.items() if when < oldest]
        return _gone(silent, f"no sign of life for {self._patience:g} s") if silent else None

    def _attend(self) -> None:
        """The thread: signs of life, and at a meeting a look at the others, at first often."""
        come, pause = 0, self._beat
        try:
            while not self._over.is_set():
                self._add(f"selfnpo/signs/{self._rank}", 1)
                if come < self._meeting:
                    come, pause = self._meeting, 0.001
                    self._add(f"selfnpo/meeting/{come}", 1)
                if self._reached < come and self._everyone_came(come):
                    self._reached, pause = come, self._beat
                    self._told.set()
                elif self._reached < come:
                    self._look_at_the_others()
                    pause = min(2 * pause, self._beat, 0.25)
                self._wake.wait(pause)
                self._wake.clear()
            self._add(f"selfnpo/signs/{self._rank}", _GONE)
        except Exception as error:  # of the store, whose process is gone
            self._failure = f"another process of this run has ended ({' '.join(str(error).split())[:200]})"
            self._told.set()

    def _everyone_came(self, meeting: int) -> bool:
        return self._add(f"selfnpo/meeting/{meeting}", 0) == len(self._others) + 1

    def _look_at_the_others(self) -> None:
        for rank in self._others:
            signs = self._add(f"selfnpo/signs/{rank}", 0)
            if signs < 0:
                self._failure = _gone([rank], "it came to an end")
                self._told.set()
            elif signs != self._signs.get(rank):
                self._signs[rank], self._seen[rank] = signs, time.monotonic()

    def _add(self, key: str, amount: int) -> int:
        value: Any = self._store.add(key, amount)
        self._answered = time.monotonic()
        return int(value)


def _gone(ranks: Sequence[int], why: str) -> str:
    names = ", ".join(map(str, ranks))
    return f"another process of this run has ended or hangs (of rank {names}: {why}): see its message"
