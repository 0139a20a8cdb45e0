"""Starting `tools/train.py` in processes of its own, on 127.0.0.1."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools/train.py"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    """This process's, without what a launcher would have set, and one thread a process."""
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**own, "OMP_NUM_THREADS": "1", **more}


def command(arguments: list[str], processes: int, *, launcher: bool = True) -> list[str]:
    start = [sys.executable]
    if launcher:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())]
    return [*start, str(SCRIPT), *arguments]


def deepspeed(arguments: list[str], processes: int) -> list[str]:
    """The same by DeepSpeed's launcher, which adds `--local_rank`."""
    start = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(processes)]
    return [*start, "--master_port", str(free_port()), str(SCRIPT), *arguments]


def launch(arguments: list[str], processes: int, *, launcher: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(arguments, processes, launcher=launcher),
        capture_output=True,
        text=True,
        timeout=400,
        env=environment(),
        check=False,
    )
