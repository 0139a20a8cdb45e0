"""The cache of embeddings: what is found, what is not, what is damaged, and how processes share it."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.models.encoding import TEXTS, Counting, same
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe
from tests.tools.launching import ROOT, environment

from selfnpo_core import InputError
from selfnpo_core.models import embeddings
from selfnpo_core.models.embeddings import EmbeddingsCache, Text, embedded
from selfnpo_core.training import train


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingsCache:
    return EmbeddingsCache(tmp_path / "cache")


def fill(cache: EmbeddingsCache | None, weights: Path, texts: list[Text] = TEXTS, **facts: Any) -> list[Text]:
    """What had to be encoded; the table is right, whatever was there."""
    counting = Counting(weights, **facts)
    assert same(embedded(texts, counting.encoder, cache), texts)
    assert counting.loads == bool(counting.encoded)
    return counting.encoded


def shards(cache: EmbeddingsCache) -> list[Path]:
    return sorted(cache.folder.glob("*/*.safetensors"))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_what_is_there_is_not_encoded_again(
    cache: EmbeddingsCache, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fill(None, weights) == TEXTS
    caplog.set_level(logging.INFO)
    assert fill(cache, weights) == TEXTS
    assert fill(cache, weights) == []
    assert "11 of 11 texts have their embeddings in" in caplog.messages[-1]
    assert fill(cache, weights, ["new", *reversed(TEXTS), "new"]) == ["new"]
    assert "11 of 12 texts" in caplog.messages[-1]
    assert fill(cache, weights, ["new", None]) == []
    assert not warnings(caplog)


def test_the_null_prompt_is_no_text(cache: EmbeddingsCache, weights: Path) -> None:
    fill(cache, weights, [None])
    assert fill(cache, weights, ["", "null", "None"]) == ["", "null", "None"]


def test_what_encodes_is_told_apart(cache: EmbeddingsCache, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By facts, by the contents of its files even where size and place are the same, by libraries and device."""
    fill(cache, weights, dtype="float32", max_tokens=226)
    assert fill(cache, weights, dtype="float16", max_tokens=226) == TEXTS
    assert fill(cache, weights, dtype="float32", max_tokens=77) == TEXTS
    assert fill(cache, weights, dtype="float32", max_tokens=226) == []
    moved = shutil.copy(weights, weights.with_name("moved"))
    assert fill(cache, moved, dtype="float32", max_tokens=226) == []
    weights.write_bytes(b"Weights")
    assert fill(cache, weights, dtype="float32", max_tokens=226) == TEXTS
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert fill(cache, weights, dtype="float32", max_tokens=226) == TEXTS
    monkeypatch.undo()
    monkeypatch.setattr(embeddings, "version", lambda name: "0")
    assert fill(cache, weights, dtype="float32", max_tokens=226) == TEXTS


def test_large_files_are_read_once(cache: EmbeddingsCache, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until they look different. One that was changed just now is not trusted to look different after a change."""
    read, plain = [], open

    def watch(path: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(path)
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(embeddings, "open", watch, raising=False)
    first = cache.sha256(weights)
    assert (cache.sha256(weights), len(read)) == (first, 2)
    os.utime(weights, ns=(10**18, 10**18))
    cache.sha256(weights)
    assert (cache.sha256(weights), len(read)) == (first, 3)
    os.utime(weights, ns=(10**18, 10**18 + 1))
    cache.sha256(weights)
    assert len(read) == 4
    (cache.folder / "files.json").write_text("{" + json.dumps([str(weights)]))
    assert (cache.sha256(weights), len(read)) == (first, 5)
    assert (cache.sha256(weights), len(read)) == (first, 5)


def damage_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def damage_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def damage_by_a_flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def damage_by_another_encoders(path: Path) -> None:
    """Of a name and a place that it should not have."""
    (other,) = (found for found in path.parents[1].glob("*/*.safetensors") if found != path)
    shutil.copy(other, path)


@pytest.mark.parametrize(
    "damage", [damage_by_cutting, damage_by_emptying, damage_by_a_flipped_bit, damage_by_another_encoders]
)
def test_what_is_damaged_is_made_anew(
    cache: EmbeddingsCache, weights: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    fill(cache, weights)
    (path,) = shards(cache)
    size = path.stat().st_size
    fill(cache, weights, other="encoder")
    damage(path)
    assert fill(cache, weights) == TEXTS
    (warning,) = warnings(caplog)
    assert f"{path} in the embeddings cache is damaged" in warning
    assert path.stat().st_size == size
    assert fill(cache, weights) == []
    damage(path)
    assert fill(cache, weights, TEXTS[5:]) == TEXTS[5:]
    assert warnings(caplog)
    assert fill(cache, weights) == TEXTS[:5]
    assert not warnings(caplog)


def test_no_flipped_byte_is_believed(cache: EmbeddingsCache, weights: Path) -> None:
    """Whichever it is of a file: of its header, of its checksums or of its numbers."""
    fill(cache, weights)
    (path,) = shards(cache)
    whole = path.read_bytes()
    for place in range(0, len(whole), 29):
        for old in shards(cache):
            old.unlink()
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        fill(cache, weights)


def test_a_killed_process_leaves_nothing_that_is_used(cache: EmbeddingsCache, weights: Path) -> None:
    """Between the last byte and the name; the rest is swept away after a day."""
    child = os.fork()
    if not child:
        embeddings.SHARD_BYTES, rename, names = 1, os.replace, []

        def die_at_the_third(aside: Path, target: Path) -> None:
            names.append(target.suffix)
            if names.count(".safetensors") == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(aside, target)

        os.replace = die_at_the_third  # type: ignore[assignment]
        fill(cache, weights)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(shards(cache)) == 2
    assert fill(cache, weights) == TEXTS[2:]
    (left,) = cache.folder.glob("*/.*.partial")
    fill(cache, weights)
    assert left.exists()
    os.utime(left, (0, 0))
    fill(cache, weights)
    assert not left.exists()


def test_files_have_a_size_and_the_oldest_go(
    cache: EmbeddingsCache, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = sum(part.nbytes for part in Counting(weights).encoder.load()("a"))
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 3 * row)
    fill(cache, weights)
    assert len(shards(cache)) == 4
    assert fill(cache, weights) == []
    fill(cache, weights, ["older"])
    for age, path in enumerate(shards(cache)):
        os.utime(path, (1000 + age, 1000 + age))
    assert fill(cache, weights, ["older"]) == []  # used now
    monkeypatch.setattr(embeddings, "MOST_BYTES", sum(path.stat().st_size for path in shards(cache)) - 1)
    fill(cache, weights, ["older"])
    assert len(shards(cache)) == 4
    monkeypatch.setattr(embeddings, "MOST_BYTES", 1)
    assert fill(cache, weights, ["older"]) == []
    assert len(shards(cache)) == 1
    assert fill(cache, weights, ["older"]) == []


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    nowhere = EmbeddingsCache(tmp_path / "file" / "cache")
    assert fill(nowhere, weights) == TEXTS
    (warning,) = warnings(caplog)
    assert "cannot be written" in warning


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(setting: str) -> Path:
        found = EmbeddingsCache.of(setting)
        assert found is not None
        return found.folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert place("auto") == tmp_path / "xdg/selfnpo/embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("auto") == tmp_path / ".cache/selfnpo/embeddings"
    assert place("~/here") == tmp_path / "here"
    assert EmbeddingsCache.of(None) is None


def test_the_recipe_chooses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place is refused before anything is written."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"embeddings_cache \S+ is a file"):
        train(ToyBackbone(), toy_recipe(embeddings_cache=str(tmp_path / "file")), PROMPTS, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    asked = []
    monkeypatch.setattr(ToyBackbone, "embed", lambda _, prompts, cache=None: asked.append(cache) or 1 / 0)
    for setting in (str(tmp_path / "here"), None):
        with pytest.raises(ZeroDivisionError):
            train(ToyBackbone(), toy_recipe(embeddings_cache=setting), PROMPTS, tmp_path / f"run-{setting is None}")
    assert [cache and cache.folder for cache in asked] == [tmp_path / "here", None]


def test_other_runs_may_use_it_at_once(cache: EmbeddingsCache, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds its rows or makes them, while others write the same, sweep files away, or leave damaged ones."""
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 100)
    monkeypatch.setattr(embeddings, "MOST_BYTES", 4000)

    def run(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(8):
            fill(cache, weights, rng.sample(TEXTS, 6))
            for path in rng.sample(found := shards(cache), min(2, len(found))):
                garbage = cache.folder / f"garbage-{seed}"
                garbage.write_bytes(rng.randbytes(300))
                with suppress(FileNotFoundError):
                    os.replace(garbage, path)

    with ThreadPoolExecutor() as pool:
        list(pool.map(run, range(4)))
    fill(cache, weights)
    assert fill(cache, weights) == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By way of sharing, what the three processes of `tests.core.models.encoding` met."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "weights").write_bytes(b"weights")
    words = [sys.executable, "-m", "tests.core.models.encoding", str(folder)]
    processes = [
        subprocess.Popen([*words, str(rank)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    said = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    return {name: [each[name] for each in said] for name in said[0]}


def test_processes_share_what_is_missing(shared: dict[str, list[dict[str, Any]]]) -> None:
    """Each text is encoded once by one of them; who has nothing to do does not even load the encoder."""
    assert Counter(text for each in shared["empty"] for text in each["encoded"]) == Counter(TEXTS)
    assert [len(each["encoded"]) for each in shared["empty"]] == [4, 4, 3]
    assert [each["loads"] for each in shared["empty"]] == [1, 1, 1]
    assert [each["loads"] for each in shared["full"]] == [0, 0, 0]
    assert sorted(each["loads"] for each in shared["one more"]) == [0, 0, 1]
    assert [text for each in shared["one more"] for text in each["encoded"]] == ["one more"]
    assert all(each["same"] for way in ("empty", "full", "one more") for each in shared[way])


@pytest.mark.parametrize("way", ["a folder each", "another encoder each"])
def test_processes_that_cannot_share_have_all_for_themselves(shared: dict[str, list[dict[str, Any]]], way: str) -> None:
    for each in shared[way]:
        assert each["same"]
        assert Counter(each["encoded"]) == Counter(TEXTS)
        assert each["loads"] == 1


def test_processes_of_one_machine_share_what_the_others_cannot_give(shared: dict[str, list[dict[str, Any]]]) -> None:
    """The first two see a folder that the third does not see."""
    one, two, alone = shared["two machines"]
    assert all(each["same"] for each in shared["two machines"])
    assert Counter(one["encoded"] + two["encoded"]) == Counter(alone["encoded"]) == Counter(TEXTS)


def test_one_process_a_node_reads_the_encoder(shared: dict[str, list[dict[str, Any]]]) -> None:
    """Text encoders are large; the other processes of its machine have the rows from the folder."""
    nodes, apart = shared["one process a node"], shared["one process a node, a folder each"]
    assert all(each["same"] for each in (*nodes, *apart))
    assert [each["loads"] for each in nodes] == [each["loads"] for each in apart] == [1, 0, 1]
    assert Counter(text for each in nodes for text in each["encoded"]) == Counter(TEXTS)
    assert Counter(apart[0]["encoded"]) == Counter(apart[2]["encoded"]) == Counter(TEXTS)


def test_an_error_in_one_process_ends_all(shared: dict[str, list[dict[str, Any]]]) -> None:
    assert [each["error"] for each in shared["failing"]] == [
        "MemoryError: no room",
        *["RunError: another process of this run failed: MemoryError: no room"] * 2,
    ]
    assert all(each["same"] for each in shared["after a failure"])
