"""Samples that an earlier run drew: when they are used, when not, and what lies where."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.core.training.test_resume import assert_same_run, run
from tests.core.training.test_samples import CHANGES, latents_of
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core import InputError
from selfnpo_core.training import Recipe, sample_store, samples, train


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(samples, "PART_ROWS", 6)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def parts_drawn(folder: Path, cache: Path | None, prompts=PROMPTS, backbone=None, **changes) -> int:
    backbone = backbone or ToyBackbone()
    setting = None if cache is None else str(cache)
    train(backbone, toy_recipe(**{**CHANGES, "samples_cache": setting, **changes}), prompts, folder, progress=False)
    return backbone.parts_drawn


def stored(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.safetensors"))


def test_a_later_run_draws_nothing_and_is_the_same(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO)
    assert parts_drawn(tmp_path / "one", cache) == 4
    assert f"0 of 20 samples found in {cache}" in caplog.text
    assert parts_drawn(tmp_path / "two", cache, learning_rate=1e-3, loss="huber") == 0
    assert f"20 of 20 samples found in {cache}" in caplog.text
    assert parts_drawn(tmp_path / "three", cache) == 0
    assert parts_drawn(tmp_path / "four", None) == 4
    assert latents_of(tmp_path / "one") == latents_of(tmp_path / "three") == latents_of(tmp_path / "four")
    for other in ("three", "four"):
        assert_same_run(tmp_path / "one", tmp_path / other, 4)


def test_run_and_store_share_the_disk_and_do_without_each_other(tmp_path, cache):
    parts_drawn(tmp_path / "one", cache)
    parts_drawn(tmp_path / "two", cache)
    files = [tmp_path / run / "latents/part-00000.safetensors" for run in ("one", "two")]
    assert all(os.path.samefile(file, stored(cache)[0]) for file in files)
    before = latents_of(tmp_path / "two")
    shutil.rmtree(cache)
    shutil.rmtree(tmp_path / "one")
    assert latents_of(tmp_path / "two") == before
    backbone = ToyBackbone()
    recipe = toy_recipe(**CHANGES, steps=5)
    train(backbone, recipe, PROMPTS, tmp_path / "two", resume=True, progress=False)
    assert backbone.parts_drawn == 0


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, cache, monkeypatch):
    def refused(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    assert parts_drawn(tmp_path / "one", cache) == 4
    assert parts_drawn(tmp_path / "two", cache) == 0
    assert latents_of(tmp_path / "one") == latents_of(tmp_path / "two")
    assert not os.path.samefile(tmp_path / "two/latents/part-00000.safetensors", stored(cache)[0])


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"sample_guidance": 3.0}, {"sample_grid_steps": 4}, {"mixed_precision": "bf16"}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_samples_are_not_used(tmp_path, cache, changes):
    parts_drawn(tmp_path / "one", cache)
    assert parts_drawn(tmp_path / "two", cache, **changes) == 4


class OtherSampler(ToyBackbone):
    def drawing_facts(self):
        return {"dtype": "another"}


@pytest.mark.parametrize("other", [ToyBackbone(seed=1), OtherSampler()], ids=["weights", "sampler"])
def test_samples_of_another_base_or_sampler_are_not_used(tmp_path, cache, other):
    parts_drawn(tmp_path / "one", cache)
    assert parts_drawn(tmp_path / "two", cache, backbone=other) == 4


def test_samples_of_other_prompts_are_not_used(tmp_path, cache):
    parts_drawn(tmp_path / "one", cache)
    assert parts_drawn(tmp_path / "two", cache, prompts=PROMPTS[:4]) == 4


def test_a_run_of_more_samples_uses_those_of_fewer(tmp_path, cache):
    """All but the last, shorter part, and the other way round."""
    parts_drawn(tmp_path / "one", cache)
    assert parts_drawn(tmp_path / "two", cache, samples=30) == 2
    assert parts_drawn(tmp_path / "three", cache, samples=12) == 0
    assert parts_drawn(tmp_path / "four", cache) == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_what_is_damaged_is_drawn_again(tmp_path, cache, damage, caplog):
    parts_drawn(tmp_path / "one", cache)
    before, file = latents_of(tmp_path / "one"), stored(cache)[1]
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.unlink()
    file.write_bytes({"truncated": content[:-9], "flipped": content, "empty": b""}[damage])
    assert parts_drawn(tmp_path / "two", cache) == 1
    assert "is damaged: it is made anew" in caplog.text
    assert latents_of(tmp_path / "two") == before
    assert parts_drawn(tmp_path / "three", cache) == 0


def test_what_cannot_be_kept_is_drawn_all_the_same(tmp_path, cache, caplog):
    cache.mkdir()
    cache.chmod(0o500)
    if os.access(cache, os.W_OK):  # root may write everywhere
        cache.chmod(0o700)
        shutil.rmtree(cache)
        cache = Path("/proc/no/such/place")
    assert parts_drawn(tmp_path / "one", cache) == 4
    assert caplog.text.count("cannot be written") == 1


def test_a_store_that_is_too_large_loses_what_was_not_used_for_longest(tmp_path, cache, monkeypatch):
    parts_drawn(tmp_path / "one", cache)
    (first,) = {file.parent for file in stored(cache)}
    monkeypatch.setattr(sample_store, "MOST_BYTES", 1)
    parts_drawn(tmp_path / "two", cache, seed=1)
    assert {file.parent for file in stored(cache)} != {first}
    assert len(stored(cache)) == 4


def test_a_file_in_the_store_s_place_is_refused_before_anything_is_written(tmp_path, cache):
    cache.touch()
    with pytest.raises(InputError, match=r"samples_cache \S+ is a file"):
        parts_drawn(tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


def test_the_user_s_own_store_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    run(tmp_path / "run", **CHANGES, samples_cache=Recipe().samples_cache)
    (kind,) = (tmp_path / "xdg/selfnpo/samples").iterdir()
    assert {path.name for path in kind.iterdir()} == {
        "drawn.json",
        *(f"{a:07d}-{b:07d}.safetensors" for a, b in ((0, 6), (6, 12), (12, 18), (18, 20))),
    }
    assert torch.equal(torch.tensor([path.stat().st_nlink for path in kind.glob("*.safetensors")]), torch.full((4,), 2))
