"""Ctrl-C and SIGTERM: finish the update, save, say how to go on.

A second signal stops a run at once, unless a launcher started it: launchers hand on what they get once or more often
(`deepspeed` sends SIGINT and SIGTERM within a tenth of a second), and kill by themselves what does not end.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

from selfnpo_core.errors import RunError


class Interrupted(RunError):
    """A run that a signal ended in good order. `exit_code` is 128 + the signal's number: 130 or 143."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def interrupted_by(number: int, message: str) -> Interrupted:
    return Interrupted(message, 128 + number)


class StopSignals:
    """Within its `with` block, SIGINT and SIGTERM only set `received`. Threads other than the main one see none."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._launched = "RANK" in os.environ

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if not self._launched:
            before = self._before.get(number, signal.SIG_DFL)
            signal.signal(number, before if before is not None else signal.SIG_DFL)
