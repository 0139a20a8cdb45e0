"""What every benchmark does: say how and where it was run, and write its figures."""

import gc
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import torch

from selfnpo_core.system import private

threads_option = click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")


def use_threads(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)


def machine() -> str:
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}"


def write(output: Path, figures: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(figures, indent=1))


def command() -> str:
    """As it was called; where a run lies is of no interest."""
    return shlex.join(["python", "tools/benchmark.py", *("RUN" if Path(w).is_dir() else w for w in sys.argv[1:])])


def tensor_bytes() -> int:
    """Of all tensors that are alive and hold numbers, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and not private.is_fake_tensor(thing) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            storages[private.storage_key(storage)] = storage.nbytes()
    return sum(storages.values())
