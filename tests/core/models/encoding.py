"""A text encoder of a few lines that counts its work.

`python -m tests.core.models.encoding FOLDER RANK` is one of three processes that fill caches in FOLDER together. It
prints one JSON line: what it met in each of the ways to do so.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from selfnpo_core import RunError
from selfnpo_core.models.embeddings import EmbeddingsCache, Encode, Encoder, Row, Text, embedded

TEXTS: list[Text] = [*(f"{number} red circles" for number in range(9)), "a fox", None]


class Counting:
    """Rows are noise, seeded by the text; the null prompt's are zeros. Two tensors of different dtypes, as SDXL's."""

    def __init__(self, weights: Path, **facts: Any):
        self.weights, self.facts = weights, facts
        self.loads = 0
        self.encoded: list[Text] = []

    @property
    def encoder(self) -> Encoder:
        return Encoder(load=self._load, files={"weights": self.weights}, facts=self.facts, device=torch.device("cpu"))

    def _load(self) -> Encode:
        self.loads += 1
        return self._encode

    def _encode(self, text: Text) -> Row:
        if text == "fails":
            raise MemoryError("no room")
        self.encoded.append(text)
        return row_of(text)


def row_of(text: Text) -> Row:
    if text is None:
        return torch.zeros(3, 4), torch.zeros(5, dtype=torch.bfloat16)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((3, 4), generator=generator), torch.randn(5, generator=generator).bfloat16()


def table_of(texts: list[Text]) -> list[torch.Tensor]:
    return [torch.stack(column) for column in zip(*(row_of(text) for text in texts), strict=True)]


def same(table: tuple[torch.Tensor, ...], texts: list[Text]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(table, table_of(texts), strict=True))


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=3)

    def fill(cache: str, texts: list[Text], **facts: Any) -> dict[str, Any]:
        counting = Counting(folder / "weights", **facts)
        answer = embedded(texts, counting.encoder, EmbeddingsCache(folder / cache))
        return {"encoded": counting.encoded, "loads": counting.loads, "same": same(answer, texts)}

    def failing() -> dict[str, Any]:
        try:
            return fill("failing", ["fails", *TEXTS])
        except (MemoryError, RunError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def on_two_nodes(cache: str) -> dict[str, Any]:
        """As a launcher has it that has started the first two on one machine, and the third on another."""
        os.environ["LOCAL_RANK"] = "010"[rank]
        answer = fill(cache, TEXTS)
        del os.environ["LOCAL_RANK"]
        return answer

    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "empty": lambda: fill("shared", TEXTS),
        "full": lambda: fill("shared", TEXTS),
        "one more": lambda: fill("shared", [*TEXTS, "one more"]),
        "a folder each": lambda: fill(f"own-{rank}", TEXTS),
        "two machines": lambda: fill(f"machine-{rank // 2}", TEXTS),
        "one process a node": lambda: on_two_nodes("nodes"),
        "one process a node, a folder each": lambda: on_two_nodes(f"node-{rank // 2}"),
        "another encoder each": lambda: fill("shared", TEXTS, number=rank),
        "failing": failing,
        "after a failure": lambda: fill("failing", TEXTS),
    }
    print(json.dumps({name: way() for name, way in ways.items()}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
