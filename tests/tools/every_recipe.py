"""One of the processes that run recipes at toy size, each in a child of its own that need not import anything anew."""

import json
import os
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import deepspeed  # noqa: F401
import train

import selfnpo_video.families  # noqa: F401


def run(words: list[str]) -> str:
    started = time.monotonic()
    try:
        train.train.main(words, standalone_mode=False)
    except BaseException:
        return traceback.format_exc()
    print(f"{words[-1]}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    return "done"


if __name__ == "__main__":
    rank, folder = os.environ["RANK"], Path(sys.argv[1])
    for name, (port, words) in json.loads((folder / "asked.json").read_text()).items():
        if not (child := os.fork()):
            os.environ["MASTER_PORT"] = str(port)
            (folder / f"{name}-{rank}.txt").write_text(run(words))
            sys.exit()
        os.waitpid(child, 0)
