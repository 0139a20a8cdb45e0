"""What is written tensor by tensor: by one process, by several, and by one that cannot."""

import errno
import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfnpo_core.system.files import file_sha256
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training import streaming
from selfnpo_core.training.sharding import walk
from selfnpo_core.training.streaming import HashedFile, Walk, shares, write_parts, write_whole

SCRIPT = Path(__file__).with_name("sharing.py")
MIB = 1 << 20


def numbers(count: int, each: int) -> dict[str, torch.Tensor]:
    return {f"{k:02d}": torch.randn(each // 4) for k in range(count)}


def test_shares_are_all_names_once_and_alike_in_size():
    sizes = [7, 1, 900, 1, 40, 33, 800, 2, 500, 90, 700]
    outlines = {f"{k:02d}": torch.empty(size, device="meta") for k, size in enumerate(sizes)}
    for writers in (1, 2, 3, 20):
        made = shares(outlines, writers)
        assert len(made) == writers
        assert sorted(name for own in made for name in own) == sorted(outlines)
        held = [sum(outlines[name].nbytes for name in own) for own in made]
        assert max(held) - min(held) <= 4 * max(sizes)


def test_parts_are_files_with_their_size_and_hash(tmp_path):
    tensors, source = numbers(3, 64), {"index": torch.tensor([1, 2])}
    written = write_parts(tmp_path, {"student": walk(tensors), "source": source})
    assert sorted(written) == ["source.safetensors", "student.safetensors"]
    for name, facts in written.items():
        assert (facts.size, facts.sha256) == ((tmp_path / name).stat().st_size, file_sha256(tmp_path / name))
    found = load_file(tmp_path / "student.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert torch.equal(load_file(tmp_path / "source.safetensors")["index"], source["index"])


def test_no_more_is_held_than_what_is_written_what_waits_and_what_is_made(tmp_path):
    tensors = numbers(16, MIB)
    doubled = walk(tensors, lambda name, tensor: tensor * 2)
    peak = peak_tensor_bytes(lambda: write_parts(tmp_path, {"student": doubled}))
    assert peak <= 3 * MIB + 4096
    assert peak_tensor_bytes(lambda: dict(doubled)) >= 16 * MIB  # what the profiler would have seen


def test_nobody_holds_a_whole_tensor_when_the_next_is_made(tmp_path):
    alive: list[weakref.ref] = []

    def one_by_one(names):
        for _ in names:
            assert not [made for made in alive if made() is not None]
            alive.append(weakref.ref(made := torch.randn(4)))
            yield made
            del made

    outlines = {name: tensor.to("meta") for name, tensor in numbers(5, 16).items()}
    gc.collect()
    write_whole(tmp_path / "a", Walk(outlines=outlines, one_by_one=one_by_one))
    assert len(alive) == 5


def test_one_that_cannot_write_walks_on_with_the_others_and_then_says_so(tmp_path, monkeypatch):
    class FullDisk(HashedFile):
        def add(self, tensor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(streaming, "HashedFile", FullDisk)
    made: list[str] = []
    seen = walk(numbers(6, 16), lambda name, tensor: made.append(name) or tensor)
    with pytest.raises(OSError, match="No space left"):
        write_parts(tmp_path, {"student": seen, "teacher": seen})
    assert len(made) == 12


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("sharing")
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    started = [
        subprocess.Popen([sys.executable, SCRIPT, folder, str(rank)], env={**own, "OMP_NUM_THREADS": "1"})
        for rank in range(2)
    ]
    assert [process.wait(300) for process in started] == [0, 0]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_write_shares_of_what_lies_in_pieces(both):
    folder, said = both
    files = [f"student-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert said[0]["files"] == said[1]["files"] == sorted([*files, "source.safetensors"])
    found = [load_file(folder / "whole" / name) for name in files]
    assert not found[0].keys() & found[1].keys()
    expected = load_file(folder / "expected.safetensors")
    together = {**found[0], **found[1]}
    assert together.keys() == expected.keys()
    assert all(torch.equal(together[name], tensor) for name, tensor in expected.items())
    sizes = [sum(tensor.nbytes for tensor in part.values()) for part in found]
    assert max(sizes) - min(sizes) <= MIB
    assert load_file(folder / "whole/source.safetensors")["of"].item() == 0


def test_neither_holds_more_than_a_few_tensors(both):
    """One that is gathered, in two forms of its own, one that waits and one that is written, and at times one that
    another thread has not let go of yet; all are 16."""
    assert max(answers["peak"] for answers in both[1]) <= 6 * MIB + (16 << 10)


def test_both_raise_when_one_cannot_write(both):
    first, second = (answers["failure"] for answers in both[1])
    assert first == "RunError: another process of this run failed: OSError: [Errno 28] No space left on device"
    assert second == "OSError: [Errno 28] No space left on device"
