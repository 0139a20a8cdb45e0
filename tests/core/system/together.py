"""What two processes do for one another, one of which this is; the tests start both. Writes what it got."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from selfnpo_core.errors import InputError
from selfnpo_core.system import processes


def said(work) -> str:
    try:
        return str(work())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def fails_on(rank: int, error: Exception):
    def work() -> str:
        if dist.get_rank() == rank:
            raise error
        return "done"

    return work


if __name__ == "__main__":
    store, rank, answers = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    device = torch.device("cpu")
    rows = torch.arange(3.0)[:, None] if rank == 0 else torch.arange(10.0, 12.0)[:, None]
    owners = [torch.tensor([0, 2, 4]), torch.tensor([1, 3])]
    joined = processes.joined(rows, owners, device, keep=rank == 0)
    got = {
        "is_main": processes.is_main(),
        "on_main": processes.on_main(lambda: f"of {dist.get_rank()}"),
        "on_main, input": said(lambda: processes.on_main(fails_on(0, InputError("wrong")))),
        "on_main, other": said(lambda: processes.on_main(fails_on(0, ValueError("broken")))),
        "gathered": processes.gathered(lambda: f"of {dist.get_rank()}"),
        "gathered, failure": said(lambda: processes.gathered(fails_on(1, ValueError("broken")))),
        "shared_out": processes.shared_out(list("abcde"), lambda own: [f"{item}{rank}" for item in own]),
        "own_share": processes.own_share([["a", "b", "c", "d"], ["a", "b", "e"]]),
        "largest": processes.largest(7 - rank, device),
        "total": processes.total(torch.tensor(1.5 + rank)).item(),
        "joined": None if joined is None else joined[:, 0].tolist(),
    }
    answers.write_text(json.dumps(got))
    dist.destroy_process_group()
