"""Ctrl-C and SIGTERM: finish the update, save, say how to go on. A second signal stops at once."""

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


class StopSignals:
    """Within its `with` block, SIGINT and SIGTERM only set `received`. Threads other than the main one see none."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

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
        self.received = number
        before = self._before.get(number, signal.SIG_DFL)
        signal.signal(number, before if before is not None else signal.SIG_DFL)

    def interruption(self, message: str) -> Interrupted:
        assert self.received is not None
        return Interrupted(message, 128 + self.received)
