"""CogVideoX's tables of embeddings are the same with and without a cache, and T5 is not read for a full one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from selfnpo_core.models.embeddings import EmbeddingsCache
from selfnpo_core.training import build_recipe, train
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_pipeline

PROMPTS = ["a red circle moves left", "", "a blue square grows", "a very long tale of circles and squares"]
CLIP = {"frames": 9, "height": 64, "width": 64}


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingsCache:
    return EmbeddingsCache(tmp_path / "cache")


def table(
    model: Path, cache: EmbeddingsCache | None = None, prompts: list[str] = PROMPTS, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    backbone = CogVideoX(find_base(str(model)), **CLIP, dtype=dtype, device="cpu")
    backbone.embed(prompts, cache)
    assert backbone._table is not None
    return backbone._table


def encoders(cache: EmbeddingsCache) -> int:
    return len(list(cache.folder.glob("*/encoder.json")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_table_is_the_same_with_and_without(
    small: Path,
    cache: EmbeddingsCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dtype: torch.dtype,
) -> None:
    plain = table(small, dtype=dtype)
    assert plain.dtype == dtype
    assert torch.equal(table(small, cache, dtype=dtype), plain)
    caplog.clear()
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *_, **__: pytest.fail("T5 is read"))
    assert torch.equal(table(small, cache, PROMPTS[::-1], dtype)[[3, 2, 1, 0, 4]], plain)
    assert "3 of 4 prompts are longer than 16 tokens" in caplog.text
    monkeypatch.undo()
    assert torch.equal(table(small, cache, ["first", *PROMPTS, "last"], dtype)[[1, 2, 3, 4, 6]], plain)


def test_the_table_is_the_stock_pipelines(small: Path) -> None:
    pipe = load_pipeline(find_base(str(small)))
    theirs, null = pipe.encode_prompt(PROMPTS, "", True, max_sequence_length=16)
    torch.testing.assert_close(table(small), torch.cat([theirs, null[:1]]), rtol=1e-5, atol=1e-6)


def test_what_encodes_is_told_apart(small: Path, cache: EmbeddingsCache, tmp_path: Path) -> None:
    """Another dtype, number of tokens, tokenizer or T5: in each case the table without a cache."""
    table(small, cache)
    assert torch.equal(table(small, cache, dtype=torch.bfloat16), table(small, dtype=torch.bfloat16))
    tokens, words, weights = (shutil.copytree(small, tmp_path / name) for name in ("tokens", "words", "weights"))
    config = tokens / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_text_seq_length": 12}))
    settings = words / "tokenizer" / "tokenizer.json"
    settings.write_text(settings.read_text().replace('"r"', '"#"', 1).replace('"b"', '"r"', 1).replace('"#"', '"b"', 1))
    (file,) = (weights / "text_encoder").glob("*.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    for other in (tokens, words, weights):
        plain = table(other)
        assert plain.shape != table(small).shape or not torch.equal(plain, table(small))
        assert torch.equal(table(other, cache), plain)
    assert encoders(cache) == 5
    moved = shutil.copytree(small, tmp_path / "moved")
    assert torch.equal(table(moved, cache), table(small))
    assert encoders(cache) == 5


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_t5_is_read_in_the_16_bits_that_it_was_stored_in(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, dtype: torch.dtype
) -> None:
    """Whatever the transformer is trained in; what was stored wider, in the transformer's."""
    model = shutil.copytree(small, tmp_path / "model")
    (file,) = (model / "text_encoder").glob("*.safetensors")
    save_file({name: tensor.to(stored) for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    read, load = [], T5EncoderModel.from_pretrained
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *a, **k: read.append(load(*a, **k)) or read[-1])
    assert table(model, dtype=dtype).dtype == dtype
    (encoder,) = read
    assert encoder.shared.weight.dtype == (dtype if stored == torch.float32 else stored)


def test_a_run_is_the_same_with_and_without(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"steps": 2, "batch_size": 2, "pool_size": 6, "grid_steps": 3, "rank": 2, "trackers": [], "device": "cpu"}
    found = []
    for name, setting in (("none", None), ("empty", tmp_path / "cache"), ("full", tmp_path / "cache")):
        if name == "full":
            monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *_, **__: pytest.fail("T5 is read"))
        recipe = build_recipe({**values, "embeddings_cache": setting and str(setting)})
        backbone = CogVideoX(find_base(str(small)), **CLIP, device="cpu")
        npo = train(backbone, recipe, PROMPTS, tmp_path / name, progress=False)
        found.append(load_file(npo / "pytorch_lora_weights.safetensors"))
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert all(torch.equal(found[0][key], other[key]) for key in other)
