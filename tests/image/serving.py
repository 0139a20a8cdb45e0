"""`selfnpo-image study` in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Server:
    """A running study: its links, and the process."""

    link: str
    results: str
    process: subprocess.Popen

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal; exit code and what was printed since."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextmanager
def serving(folder: Path, *words: str, port: int = 0) -> Iterator[Server]:
    """A study of folder/red and folder/blue with its database there."""
    command = [sys.executable, "-m", "selfnpo_image.cli", "study", "red", "blue", "--port", str(port), *words]
    process = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        said = process.stdout.readline() + process.stdout.readline()
        links = re.findall(r"http://\S+", said)
        assert len(links) == 2, said + process.communicate()[1]
        yield Server(*links, process)
    finally:
        process.kill()
        process.communicate()
