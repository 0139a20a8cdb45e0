"""Video models as people have them: what a folder lacks, says of itself, or is instead."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model_folders import edit, publish_t5, saved
from tests.tiny import cogvideox

from selfnpo_core.errors import InputError
from selfnpo_core.models.identity import weights_hash
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_network, load_pipeline, load_tokenizer, stored_dtype
from selfnpo_video.shapes import ClipSize

NETWORK = "transformer/diffusion_pytorch_model.safetensors"


def refused(folder: Path, words: str) -> None:
    """As a sketch, as a model to train, and as a pipeline, in one line."""
    for made in (CogVideoX.sketch, lambda base: CogVideoX(base, device="cpu"), load_pipeline):
        with pytest.raises(InputError, match=words) as error:
            made(find_base(str(folder)))  # type: ignore[operator]
        assert "\n" not in str(error.value)


def test_a_lost_vocabulary(damaged: Path) -> None:
    (damaged / "tokenizer/tokenizer.json").unlink()
    for made in (load_tokenizer, load_pipeline):
        with pytest.raises(InputError, match=r"lacks the vocabulary of its tokenizer, .*spiece\.model or"):
            made(find_base(str(damaged)))  # type: ignore[operator]
    with pytest.raises(InputError, match="lacks the vocabulary"):
        CogVideoX(find_base(str(damaged)), device="cpu").embed(["a fox"])


def test_a_tokenizer_as_it_is_published(damaged: Path) -> None:
    """`spiece.model`, and no tokenizer.json."""
    publish_t5(damaged / "tokenizer")
    backbone = CogVideoX(find_base(str(damaged)), device="cpu")
    backbone.embed(["a red fox", "two blue hats"])
    assert backbone._table is not None
    assert not torch.equal(backbone._table[0], backbone._table[1])


@pytest.mark.parametrize(
    ("place", "changes", "words"),
    [
        ("model_index.json", {"_class_name": ["mine", "Pipe"]}, r"of a custom pipeline \(mine\.Pipe\)"),
        ("model_index.json", {"_class_name": ...}, "is no diffusers pipeline"),
        ("transformer/config.json", {"_class_name": "WanTransformer3DModel"}, "a transformer that is a Wan"),
        ("transformer/config.json", {"sample_height": [8]}, r"has sample_height \[8\] in transformer/config.json"),
        ("transformer/config.json", {"max_text_seq_length": None}, "has max_text_seq_length None"),
        ("transformer/config.json", {"num_attention_heads": None}, "has num_attention_heads None"),
        ("transformer/config.json", {"num_layers": None}, "cannot be loaded"),
        ("transformer/config.json", {"quantization_config": {"quant_method": "torchao"}}, r"weights \(torchao\)"),
        ("vae/config.json", {"temporal_compression_ratio": "x"}, "has temporal_compression_ratio x in vae/config"),
        ("vae/config.json", {"block_out_channels": None}, "has no list of block_out_channels in vae"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": None}, "cannot be loaded"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "zero terminal SNR that predicts epsilon"),
    ],
)
def test_fields_that_are_absent_null_or_a_list(damaged: Path, place: str, changes: dict[str, Any], words: str) -> None:
    edit(damaged / place, **changes)
    refused(damaged, words)


def test_a_null_size_is_not_needed_where_one_is_given(tmp_path: Path) -> None:
    """Rotary positions know no size."""
    saved(cogvideox("5b"), tmp_path)
    edit(tmp_path / "transformer/config.json", sample_height=None, sample_width=None)
    base = find_base(str(tmp_path))
    assert CogVideoX(base, frames=9, height=32, width=32, device="cpu").size == ClipSize(frames=9, height=32, width=32)
    with pytest.raises(InputError, match="does not say what size it was made for"):
        CogVideoX(base, frames=9, device="cpu")


@pytest.mark.parametrize("parts", [("transformer", "vae", "text_encoder"), ("text_encoder",), ("transformer",)])
@pytest.mark.parametrize("variant", ["bf16", "fp16"])
def test_components_that_are_variants_only(small: Path, damaged: Path, parts: tuple[str, ...], variant: str) -> None:
    for part in parts:
        for file in (damaged / part).glob("*.safetensors"):
            file.rename(file.with_suffix(f".{variant}.safetensors"))
    base = find_base(str(damaged))
    assert base.variants == dict.fromkeys(parts, variant)
    one, other = load_pipeline(base), load_pipeline(find_base(str(small)))
    for part in ("transformer", "vae", "text_encoder"):
        a, b = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert all(torch.equal(a[name], b[name]) for name in b)
    backbone = CogVideoX(base, device="cpu")
    backbone.embed(["a fox"])


def test_one_tensor_in_8_bits_rounds_no_other(small: Path, damaged: Path) -> None:
    weights, first = load_file(damaged / NETWORK), "patch_embed.proj.weight"
    save_file({**weights, first: weights[first].to(torch.float8_e4m3fn)}, damaged / NETWORK)
    base = find_base(str(damaged))
    assert stored_dtype(base) == torch.float32
    one, other = load_network(base, stored_dtype(base)).state_dict(), load_network(find_base(str(small))).state_dict()
    assert {name for name in one if not torch.equal(one[name], other[name])} == {first}


def test_a_file_of_8_bits_alone_is_hashed_as_it_is(damaged: Path) -> None:
    weights = {name: tensor.to(torch.float8_e5m2) for name, tensor in load_file(damaged / NETWORK).items()}
    save_file(weights, damaged / NETWORK)
    base = find_base(str(damaged))
    assert stored_dtype(base) == torch.bfloat16
    assert weights_hash(load_network(base, torch.bfloat16)) == weights_hash(load_network(base))


def marked(folder: Path) -> None:
    save_file(load_file(folder / NETWORK), folder / NETWORK, {"modelspec.prediction_type": "epsilon"})


def scaled(folder: Path) -> None:
    save_file({**load_file(folder / NETWORK), "proj_out.scale_weight": torch.ones(1)}, folder / NETWORK)


def gguf(folder: Path) -> None:
    (folder / NETWORK).rename(folder / "transformer/model-Q4_K.gguf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (marked, "transformer says of itself epsilon, but .* says v_prediction"),
        (scaled, "holds quantised weights"),
        (gguf, r"only quantised weights \(GGUF\) in transformer"),
    ],
)
def test_folders_that_are_refused(damaged: Path, change: Callable[[Path], None], words: str) -> None:
    change(damaged)
    refused(damaged, words)


def test_zero_snr_begins_at_its_step(damaged: Path) -> None:
    edit(damaged / "scheduler/scheduler_config.json", timestep_spacing="leading")
    base = find_base(str(damaged))
    backbone, pipe = CogVideoX(base, device="cpu"), load_pipeline(base)
    pipe.scheduler.set_timesteps(4)
    assert backbone.schedule.grid(4)[0] == pipe.scheduler.timesteps[0] == 999


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "a LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a UNet without its text encoders"),
        ("transformer_blocks.0.attn1.to_q.weight", "a video or transformer model"),
        ("something", "a single file"),
    ],
)
def test_a_single_file_is_told(tmp_path: Path, name: str, what: str) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=f"m.safetensors is {what}.*give"):
        find_base(str(tmp_path / "m.safetensors"))


def test_a_folder_of_a_lora_is_told(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match=r"has no model_index\.json, it holds a LoRA"):
        find_base(str(tmp_path))


def test_of_a_hub_repository_one_variant_is_fetched(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selfnpo_video import loading

    names = [path.relative_to(small).as_posix() for path in small.rglob("*") if path.is_file()]
    names += [NETWORK.replace(".safetensors", ".fp16.safetensors"), "text_encoder/model.fp16.safetensors"]
    asked: list[str] = []
    revisions: set[str | None] = set()

    def fetch(_location: str, allow_patterns: list[str], revision: str | None) -> str:
        asked[:] = allow_patterns
        revisions.add(revision)
        return str(shutil.copytree(small, small.parent / "fetched", dirs_exist_ok=True))

    monkeypatch.setattr(loading, "snapshot_download", fetch)
    monkeypatch.setattr(loading, "list_repo_files", lambda _, revision: revisions.add(revision) or names)
    assert loading.local(find_base("someone/model")).source.kind == "folder"
    assert NETWORK in asked
    assert not [name for name in asked if "fp16" in name]
    assert revisions == {None}
    revisions.clear()
    pinned = loading.local(find_base("someone/model@v2:fp16"))
    assert (revisions, pinned.name, pinned.source.kind) == ({"v2"}, "someone/model@v2:fp16", "folder")
    weights = [name for name in asked if name.endswith(".safetensors")]
    assert [("fp16" in name, name.partition("/")[0]) for name in sorted(weights)] == [
        (True, "text_encoder"),
        (True, "transformer"),
        (False, "vae"),
    ]


def test_a_variant_that_is_asked_for_is_taken(damaged: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where both are; and said where it is not."""
    half = load_pipeline(find_base(str(damaged))).transformer.half()
    half.save_pretrained(damaged / "transformer", variant="fp16")
    assert find_base(str(damaged)).variants == {}
    base = find_base(f"{damaged}:fp16")
    assert base.variants == {"transformer": "fp16"}
    assert "has no variant fp16 in vae: the plain one is taken" in caplog.text
    assert stored_dtype(base) == torch.float16
