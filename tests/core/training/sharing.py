"""What two processes write of tensors in pieces, one of which this is; the tests start both."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from selfnpo_core.ranks import Ranks
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training import streaming
from selfnpo_core.training.sharding import split, walk


class FullDisk(streaming.HashedFile):
    def add(self, tensor: torch.Tensor) -> None:
        raise OSError(28, "No space left on device")


if __name__ == "__main__":
    folder, ranks = Path(sys.argv[1]), Ranks(int(sys.argv[2]), 2)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=ranks.index, world_size=2)
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(512, 512) for _ in range(16)))
    if ranks.index == 0:
        save_file(network.state_dict(), folder / "expected.safetensors")
        (folder / "whole").mkdir()
        (folder / "failed").mkdir()
    dist.barrier()
    split(network, torch.device("cpu"))
    parts = {"student": walk(dict(network.named_parameters())), "source": {"of": torch.tensor(ranks.index)}}
    written: list[str] = []

    def write() -> None:
        written.extend(streaming.write_parts(folder / "whole", parts, ranks, shared=True))

    peak = peak_tensor_bytes(write)
    if ranks.index:
        streaming.HashedFile = FullDisk
    failure = ""
    try:
        streaming.write_parts(folder / "failed", parts, ranks, shared=True)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    (folder / f"{ranks.index}.json").write_text(
        json.dumps({"files": sorted(written), "peak": peak, "failure": failure})
    )
    dist.destroy_process_group()
