"""The tables of embeddings are the same, bit for bit, without a cache, with an empty one and with a full one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.image.ldm import single_file
from tests.tiny import PIPELINES, sd15
from torch import Tensor
from transformers import PreTrainedModel

from selfnpo_core.errors import InputError
from selfnpo_core.guidance import NULL
from selfnpo_core.models.backbone import embeddings_on_device
from selfnpo_core.models.embeddings import EmbeddingsCache
from selfnpo_core.system import private
from selfnpo_core.training import build_recipe, dry_run, train
from selfnpo_image import backbone as backbones
from selfnpo_image.backbone import ImageBackbone
from selfnpo_image.families import FAMILIES, find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sd15 import SD15

PROMPTS = ["a red fox", "a very small boat on a very large lake", "", "a red fox"]
RECIPE = {"batch_size": 2, "pool_size": 4, "grid_steps": 4, "steps": 2, "trackers": [], "device": "cpu"}


@pytest.fixture(scope="module", params=["sd15", "sdxl", "sd3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / request.param
    PIPELINES[request.param]().save_pretrained(path)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingsCache:
    return EmbeddingsCache(tmp_path / "cache")


def made(model: Path, **changes: object) -> ImageBackbone:
    return FAMILIES[model.name](find_base(str(model)), device="cpu", **changes)  # type: ignore[arg-type]


def table(
    backbone: ImageBackbone, cache: EmbeddingsCache | None = None, prompts: list[str] = PROMPTS
) -> tuple[Tensor, ...]:
    backbone.embed(prompts, cache)
    assert not backbone.vae_on_device
    return backbone._table


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def no_encoder_is_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("an encoder is read"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_table_is_the_same_with_and_without(
    model: Path, cache: EmbeddingsCache, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Also where others were missing beside a prompt, and in another order. No encoder is read for a full cache."""
    plain = table(made(model, dtype=dtype))
    assert same(table(made(model, dtype=dtype), cache), plain)
    no_encoder_is_read(monkeypatch)
    assert same(table(made(model, dtype=dtype), cache), plain)
    other_way = table(made(model, dtype=dtype), cache, PROMPTS[::-1])
    assert same(tuple(part[[3, 2, 1, 0, 4]] for part in other_way), plain)
    monkeypatch.undo()
    more = table(made(model, dtype=dtype), cache, ["first", *PROMPTS, "last"])
    assert same(tuple(part[[1, 2, 3, 4, 6]] for part in more), plain)
    assert same(
        tuple(part[[0, 5]] for part in more),
        tuple(p[:2] for p in table(made(model, dtype=dtype), None, ["first", "last"])),
    )


def test_the_table_is_the_stock_pipelines(model: Path) -> None:
    """But for rounding, which depends on how many texts T5 is given at once."""
    pipe, backbone = load_pipeline(find_base(str(model))), made(model)
    texts = backbone._encode(pipe, PROMPTS[:2])
    for mine, theirs in zip(table(backbone), texts, strict=True):
        torch.testing.assert_close(mine[:2], theirs, rtol=1e-4, atol=1e-5)


def test_another_dtype_is_encoded_anew(model: Path, cache: EmbeddingsCache) -> None:
    table(made(model), cache)
    half = table(made(model, dtype=torch.bfloat16), cache)
    assert same(half, table(made(model, dtype=torch.bfloat16)))
    assert len(list(cache.folder.glob("*/encoder.json"))) == 2


def test_another_encoder_or_tokenizer_is_another(model: Path, cache: EmbeddingsCache, tmp_path: Path) -> None:
    """The last text encoder's weights, of the same size; the first one's tokenizer."""
    table(made(model), cache)
    others = []
    for change in ("weights", "tokenizer"):
        copy = shutil.copytree(model, tmp_path / change / model.name)
        others.append(copy)
        if change == "weights":
            (file,) = (copy / FAMILIES[model.name].kind.text_encoders[-1]).glob("*.safetensors")
            weights = load_file(file)
            save_file({name: tensor * 1.1 for name, tensor in weights.items()}, file, metadata={"format": "pt"})
        else:
            file = copy / "tokenizer" / "tokenizer.json"
            file.write_text(
                file.read_text().replace('"a":', '"#":', 1).replace('"b":', '"a":', 1).replace('"#":', '"b":', 1)
            )
    tables = [table(made(other), cache) for other in others]
    for other, found in zip(others, tables, strict=True):
        assert same(found, table(made(other)))
        assert not same(found, table(made(model)))


def test_the_null_prompt_that_a_model_chooses(tmp_path: Path, cache: EmbeddingsCache) -> None:
    """Zeros or the empty text: the weights are the same, and so is the name of the folder."""
    PIPELINES["sdxl"]().save_pretrained(tmp_path / "sdxl")
    file = tmp_path / "sdxl" / "model_index.json"
    for zeros in (True, False):
        file.write_text(json.dumps({**json.loads(file.read_text()), "force_zeros_for_empty_prompt": zeros}))
        assert bool(table(made(tmp_path / "sdxl"), cache)[0][NULL].any()) != zeros


def test_a_single_file_is_known_again(
    folder: Path, tmp_path: Path, cache: EmbeddingsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.safetensors"
    save_file(single_file(sd15()), file)

    def backbone() -> SD15:
        return SD15(find_base(str(file), folder), device="cpu")

    plain = table(SD15(find_base(str(folder)), device="cpu"))
    assert same(table(backbone(), cache), plain)
    monkeypatch.setattr(ImageBackbone, "_load_encoders", lambda _: pytest.fail("an encoder is read"))
    assert same(table(backbone(), cache), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoders_are_read_in_the_16_bits_that_they_were_stored_in(
    model: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Whatever the denoiser is trained in; here the last one was stored in 16 bits, and others in 32."""
    copy = shutil.copytree(model, tmp_path / model.name)
    *others, last = FAMILIES[model.name].kind.text_encoders
    (file,) = (copy / last).glob("*.safetensors")
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    backbone = made(copy, dtype=dtype)
    pipe = backbone._pipeline(encoders=True)
    assert getattr(pipe, last).dtype == torch.float16
    assert all(getattr(pipe, part).dtype == dtype for part in others)
    assert all(part.dtype == dtype for part in table(backbone))


def test_a_single_files_encoder_too(folder: Path, tmp_path: Path) -> None:
    file, weights = tmp_path / "tiny.safetensors", single_file(sd15())
    own = {
        n: t.half() if n.startswith("cond_stage_model.") and t.is_floating_point() else t for n, t in weights.items()
    }
    save_file(own, file)
    backbone = SD15(find_base(str(file), folder), device="cpu")
    assert backbone._pipeline(encoders=True).text_encoder.dtype == torch.float16
    assert table(backbone)[0].dtype == torch.float32


def test_grids_are_drawn_without_a_text_encoder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of prompts in the table; T5 would not fit beside what is trained."""
    backbone = made(model)
    table(backbone)
    no_encoder_is_read(monkeypatch)
    drawn = backbone.draw_samples(PROMPTS[:2], [3, 4], guidance_scale=4.0, steps=2, negative=None)
    assert [picture.size for picture in drawn] == [backbone.size[::-1]] * 2


def test_a_cut_text_encoder_is_named_before_training(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "cut")
    (file,) = (copy / "text_encoder").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"text_encoder\S+ is not a whole safetensors file"):
        SD15(find_base(str(copy)), device="cpu")


def test_a_run_is_the_same_with_and_without(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its encoder is not read with a full cache, unless samples are drawn."""
    found = []
    for name, setting in (("none", None), ("empty", tmp_path / "cache"), ("full", tmp_path / "cache")):
        if name == "full":
            no_encoder_is_read(monkeypatch)
        recipe = build_recipe({**RECIPE, "embeddings_cache": setting and str(setting)})
        npo = train(SD15(find_base(str(folder)), device="cpu"), recipe, PROMPTS, tmp_path / name, progress=False)
        found.append(load_file(npo / "pytorch_lora_weights.safetensors"))
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert all(torch.equal(found[0][key], other[key]) for key in other)
    monkeypatch.undo()
    recipe = build_recipe({**RECIPE, "embeddings_cache": str(tmp_path / "cache"), "sample_every": 2, "sample_steps": 2})
    train(SD15(find_base(str(folder)), device="cpu"), recipe, PROMPTS, tmp_path / "drawn", progress=False)
    assert (tmp_path / "drawn/samples/step-000002.png").exists()


class OnTheGpu(private.SeesOperations):
    """The most bytes of any one tensor that a simulation puts on a GPU."""

    largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [tensor.untyped_storage().nbytes() for tensor in private.tensors_in(out) if tensor.is_cuda]
        self.largest = max([self.largest, *sizes])
        return out


def test_the_table_stays_in_host_memory_and_a_batch_fetches_its_rows(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, told = made(model), {}
    rows = table(backbone, prompts=PROMPTS * 10)
    monkeypatch.setattr(backbone, "_call", lambda x_t, t, given: told.update(given) or x_t)
    gpu = torch.device("cuda")
    with private.fake_tensors(), OnTheGpu() as seen:
        x_t = torch.empty((2, 1), device=gpu)
        backbone.predict(x_t, torch.zeros(2, device=gpu), torch.zeros(2, dtype=torch.long, device=gpu))
        fetched = [value for value in told.values() if isinstance(value, Tensor)]
        assert fetched
        assert all(value.is_cuda and len(value) == 2 for value in fetched)
    assert 0 < seen.largest <= 2 * max(part[0].nbytes for part in rows)
    monkeypatch.setattr(backbones, "embedded", lambda *_: rows)
    backbone.device = gpu
    assert all(part.device.type == "cpu" for part in table(backbone))
    assert not embeddings_on_device(backbone)


def test_the_estimate_counts_the_table_in_host_memory(model: Path) -> None:
    backbone = made(model)
    (part,) = (part for part in dry_run(backbone, build_recipe(RECIPE), PROMPTS).memory if "embeddings" in part.name)
    assert (part.on_device, part.bytes) == (False, 5 * backbone.bytes_per_prompt)
