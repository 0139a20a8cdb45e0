"""Ctrl-C and SIGTERM: noted within the block, and as before outside of it."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from selfnpo_core.system.signals import StopSignals, interrupted_by

REPEATED = """
import os, signal
from selfnpo_core.system.signals import StopSignals

with StopSignals() as signals:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    print(int(signals.received))
"""


@pytest.mark.parametrize(("launched", "end"), [({"RANK": "0"}, "2"), ({}, "")])
def test_a_second_signal_stops_at_once_unless_it_may_be_a_launchers(launched, end):
    own = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run([sys.executable, "-c", REPEATED], env={**own, **launched}, capture_output=True, text=True)
    assert done.stdout.strip() == end
    assert done.returncode == (0 if launched else -signal.SIGTERM), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_its_handler_is_back_afterwards(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert signal.getsignal(number) is before


def test_handlers_are_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopSignals():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_changes_no_handler():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopSignals() as signals:
            seen.append((signals.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_a_shells(number, code):
    error = interrupted_by(number, "stopped")
    assert (error.exit_code, str(error)) == (code, "stopped")
