"""What networks say is kept by file, shared by processes, and gone on with."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.evaluation.networks import Cache, Network, Ready, look
from selfnpo_core.evaluation.samples import Sample
from selfnpo_core.ranks import ALONE, Ranks
from selfnpo_core.sampling.medium import Medium

MEDIA = Medium(
    unit="number", suffixes=frozenset({".txt"}), read=lambda path: np.full((1, 1, 1, 3), int(path.read_text()))
)
CPU = torch.device("cpu")


def samples(folder: Path, count: int) -> list[Sample]:
    made = []
    for i in range(count):
        (folder / f"{i}.txt").write_text(str(i))
        made.append(Sample(path=folder / f"{i}.txt", sha256=f"{i:064d}", shape=(1, 1, 1), prompt="ab" * i, seed=i))
    return made


def ready(seen: list[int] | None = None, *, model: str = "m", asks: bool = True, wait: float = 0.0) -> Ready:
    """A network that says a number and its prompt's length."""

    def load(places, device):
        def look_(frames, prompts):
            time.sleep(wait)
            numbers = [int(each.flat[0]) for each in frames]
            if seen is not None:
                seen.extend(numbers)
            return torch.tensor([[n, len(text)] for n, text in zip(numbers, prompts, strict=True)])

        return look_

    network = Network(
        name="toy", columns=("a", "b"), asks=asks, model=model, preprocessing="", library="", load=load, batch=2
    )
    return Ready(network=network, places=[], sha256={})


def test_what_another_reader_saw_is_not_taken(tmp_path):
    some, seen, cache = samples(tmp_path, 2), [], Cache(tmp_path / "cache", ALONE)
    with cache.held():
        for version in ("1", "1", "2"):
            media = replace(MEDIA, reader=lambda version=version: version)
            look(ready(seen), some, media, cache=cache, device=CPU)
    assert seen == [0, 1, 0, 1]


def test_every_sample_is_looked_at_once(tmp_path):
    some, seen = samples(tmp_path, 5), []
    wanted = [[i, 2 * i] for i in range(5)]
    cache = Cache(tmp_path / "cache", ALONE)
    with cache.held():
        assert look(ready(seen), some[:3], MEDIA, cache=cache, device=CPU).tolist() == wanted[:3]
        assert look(ready(seen), [*some[::-1], some[0]], MEDIA, cache=cache, device=CPU).tolist() == [
            *wanted[::-1],
            [0, 0],
        ]
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_another_model_or_prompt_is_another_answer(tmp_path):
    some, seen = samples(tmp_path, 2), []
    cache = Cache(tmp_path / "cache", ALONE)
    other = [Sample(path=s.path, sha256=s.sha256, shape=s.shape, prompt="else", seed=s.seed) for s in some]
    with cache.held():
        for network, which in ((ready(seen), some), (ready(seen, model="n"), some), (ready(seen), other)):
            look(network, which, MEDIA, cache=cache, device=CPU)
        assert len(seen) == 6
        look(ready(seen, asks=False), some, MEDIA, cache=cache, device=CPU)
        look(ready(seen, asks=False), other, MEDIA, cache=cache, device=CPU)
    assert len(seen) == 8


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path):
    some, seen = samples(tmp_path, 2), []
    cache = Cache(tmp_path / "cache", ALONE)
    with cache.held():
        look(ready(seen), some, MEDIA, cache=cache, device=CPU)
        (file,) = (tmp_path / "cache").rglob("*.safetensors")
        file.write_bytes(file.read_bytes()[:20])
        assert look(ready(seen), some, MEDIA, cache=cache, device=CPU).tolist() == [[0, 0], [1, 2]]
    assert len(seen) == 4


def test_nothing_finite_is_a_failed_run(tmp_path):
    some = samples(tmp_path, 2)
    network = Network(
        name="nan",
        model="",
        preprocessing="",
        library="",
        load=lambda places, device: lambda frames, prompts: torch.tensor([[1.0], [float("nan")]]),
    )
    cache = Cache(tmp_path / "cache", ALONE)
    with cache.held(), pytest.raises(RunError, match=r"1\.txt"):
        look(Ready(network=network, places=[], sha256={}), some, MEDIA, cache=cache, device=CPU)


def other_process(folder: str, started) -> None:
    """Number 1 of 2."""
    path = Path(folder)
    cache = Cache(path / "cache", Ranks(1, 2))
    with cache.held():
        started.set()
        assert look(ready(wait=0.2), samples(path, 8), MEDIA, cache=cache, device=CPU) is None


def test_the_first_process_joins_what_the_others_wrote(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=other_process, args=(str(tmp_path), started))
    some, seen = samples(tmp_path, 8), []
    process.start()
    assert started.wait(20)
    cache = Cache(tmp_path / "cache", Ranks(0, 2))
    with cache.held():
        rows = look(ready(seen), some, MEDIA, cache=cache, device=CPU)
    process.join(20)
    assert process.exitcode == 0
    assert rows.tolist() == [[i, 2 * i] for i in range(8)]
    assert sorted(seen) == [0, 2, 4, 6]


def test_a_killed_process_is_gone_on_with(tmp_path):
    context = multiprocessing.get_context("fork")
    some, seen, cache = samples(tmp_path, 8), [], Cache(tmp_path / "cache", ALONE)

    def slow() -> None:
        with cache.held():
            look(ready(wait=0.2), some, MEDIA, cache=cache, device=CPU)

    process = context.Process(target=slow)
    process.start()
    while process.is_alive() and not list((tmp_path / "cache").rglob("*.safetensors")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    with cache.held():
        rows = look(ready(seen), some, MEDIA, cache=cache, device=CPU)
    assert rows.tolist() == [[i, 2 * i] for i in range(8)]
    assert 0 < len(seen) < 8


def test_a_process_that_is_gone_is_not_waited_for(tmp_path):
    some, seen = samples(tmp_path, 5), []
    cache = Cache(tmp_path / "cache", Ranks(0, 3))
    with cache.held():
        look(ready(seen), some, MEDIA, cache=cache, device=CPU)
    assert sorted(seen) == [0, 1, 2, 3, 4]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="another --cache"), Cache(tmp_path / "cache", ALONE).held():
        pass
