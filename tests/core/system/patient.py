"""Two processes, one of which works for longer than they would wait for one another; the tests start both."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from selfnpo_core.system import private, processes

SECONDS = 2

if __name__ == "__main__":
    store, rank, answers = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    dist.barrier()
    _set_pg_timeout(timedelta(seconds=SECONDS), dist.group.WORLD)
    private.default_store().set_timeout(timedelta(seconds=SECONDS))

    def work() -> str:
        time.sleep(3 * SECONDS)
        return "done"

    answer = [processes.on_main(work), *processes.gathered(lambda: work() if rank else "nothing")]
    try:
        if rank == 0:
            work()
        processes.total(torch.ones(1))
        answer.append("waited")
    except RuntimeError:
        answer.append("gave up")
    answers.write_text(" ".join(answer))
    os._exit(0)  # threads of a group that gave up cannot be joined
