"""Two processes, the second of which goes in the way that it is told while the first waits; the tests start both."""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from selfnpo_core.errors import RunError
from selfnpo_core.system import private, processes

SECONDS = 3

if __name__ == "__main__":
    rank, port, way, answer = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo")
    dist.barrier()
    private.default_store().set_timeout(timedelta(seconds=SECONDS))
    processes.gathered(lambda: rank)
    if way == "end" and rank == 1:
        sys.exit(0)
    if way != "end" and rank == (0 if way == "stop the store's" else 1):
        os.kill(os.getpid(), signal.SIGKILL if way == "kill" else signal.SIGSTOP)
    started = time.monotonic()
    try:
        processes.gathered(lambda: rank)
    except RunError as error:
        answer.write_text(f"{time.monotonic() - started:.2f} {error}")
