"""Which files of a component are its weights, what is quantised, and which dtype holds all of a file."""

import pytest
import torch
import transformers
from safetensors.torch import save_file

from selfnpo_core.errors import InputError
from selfnpo_core.models.components import choose, component_class, find_weights, wanted_files
from selfnpo_core.models.headers import Header, read_header, widest_dtype
from selfnpo_core.models.quantised import check_config, check_header

STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "variant", "files"),
    [
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], None, 1),
        ([f"{STEM}.fp16.safetensors"], "fp16", 1),
        (["model.bf16.safetensors", "model.fp16.safetensors"], "fp16", 1),
        (["model.bf16-00001-of-00002.safetensors", "model.bf16-00002-of-00002.safetensors"], "bf16", 2),
        (["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"], "fp16", 2),
        ([f"{STEM}.non_ema.safetensors"], "non_ema", 1),
        (["model-00001-of-00001.safetensors", "model.fp16.safetensors"], None, 1),
    ],
)
def test_the_weights_of_a_component(names, variant, files):
    weights = choose([*names, "config.json", "notes.safetensors", "model.safetensors.index.json"])
    assert weights is not None
    assert (weights.variant, len(weights.files)) == (variant, files)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["model-00001-of-00002.safetensors"], "lacks part 2 of 2 of the weights in unet"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "lacks the index of the weights in unet",
        ),
        (["model.bin"], "only pickled weights"),
        (["model.CKPT"], "only pickled weights"),
        (["model.gguf"], "only quantised weights"),
        (["notes.safetensors"], "no weights in unet"),
    ],
)
def test_weights_that_are_not_there(tmp_path, files, words):
    (tmp_path / "unet").mkdir()
    for file in files:
        save_file({"weight": torch.zeros(1)}, tmp_path / "unet" / file)
    with pytest.raises(InputError, match=words):
        find_weights(tmp_path, "unet", "m")


def test_of_a_repository_one_variant_a_component_is_wanted():
    names = [
        *("README.md", "model_index.json", "whole.safetensors", "tokenizer/vocab.json", "tokenizer/spiece.model"),
        *("unet/config.json", f"unet/{STEM}.bf16.safetensors", f"unet/{STEM}.bf16.bin"),
        *("vae/config.json", f"vae/{STEM}.safetensors", f"vae/{STEM}.fp16.safetensors"),
        "safety_checker/model.safetensors",
    ]
    wanted = wanted_files(names, ["unet", "vae"])
    assert sorted(set(names) - set(wanted)) == [
        "README.md",
        "safety_checker/model.safetensors",
        f"unet/{STEM}.bf16.bin",
        f"vae/{STEM}.fp16.safetensors",
        "whole.safetensors",
    ]


FP8 = torch.zeros(2, 2, dtype=torch.float8_e4m3fn)
HALF, BYTES = torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"a.weight": FP8, "a.scale_weight": HALF}, None, "scaled form, with 'a.scale_weight'"),
        ({"a.weight": FP8, "a.weight_scale": HALF}, None, "scaled form"),
        ({"a.weight": FP8, "a.weight_scale_inv": HALF}, None, "scaled form"),
        ({"a.weight": FP8, "model.scaled_fp8": HALF}, None, "ComfyUI's form"),
        ({"a.weight": FP8, "a.comfy_quant": BYTES}, None, "ComfyUI's form"),
        ({"a.weight": BYTES, "a.weight.absmax": HALF}, None, "bitsandbytes form"),
        ({"a.weight": BYTES, "a.weight.quant_state.bitsandbytes__nf4": HALF}, None, "bitsandbytes form"),
        ({"a.weight": BYTES.to(torch.int8), "a.SCB": HALF}, None, "bitsandbytes form"),
        ({"a.qweight": BYTES, "a.wscales": HALF}, None, "nunchaku form"),
        ({"a.qweight": BYTES, "a.qzeros": HALF}, None, "GPTQ or AWQ form"),
        ({"a.weight._data": BYTES, "a.weight._scale": HALF}, None, "quanto form"),
        ({"a.weight": BYTES}, None, "'a.weight' is U8"),
        ({"a.weight": HALF}, {"quantization_config": "{}"}, "its header has 'quantization_config'"),
    ],
)
def test_quantised_weights_are_refused_by_name(tmp_path, tensors, metadata, words):
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    with pytest.raises(InputError, match=rf"m holds quantised weights \({words}"):
        check_header(read_header(tmp_path / "m.safetensors"), "m")


def test_what_is_not_quantised_passes():
    names = (
        "a.weight",
        "logit_scale",
        "scale_shift_table",
        "text_model.embeddings.position_ids",
        "num_batches_tracked",
    )
    dtypes = dict(zip(names, ("F8_E4M3", "F32", "F32", "I64", "I64"), strict=True))
    check_header(Header(shapes=dict.fromkeys(names, (1,)), dtypes=dtypes, metadata={"format": "pt"}), "m")
    check_config({"_class_name": "AutoencoderKL", "quantization_config": None}, "m")
    with pytest.raises(InputError, match=r"m is of quantised weights \(gguf\)"):
        check_config({"quantization_config": {"quant_method": "gguf"}}, "m")


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        (["F8_E4M3", "F32"], torch.float32),
        (["F8_E4M3", "BF16"], torch.bfloat16),
        (["F8_E4M3", "F8_E5M2"], torch.bfloat16),
        (["F16", "I64"], torch.float16),
        (["F16", "BF16"], torch.float32),
        (["F64", "F16"], torch.float64),
        ([], torch.float32),
    ],
)
def test_the_widest_dtype_holds_all(dtypes, widest):
    assert widest_dtype({str(i): dtype for i, dtype in enumerate(dtypes)}) == widest


def test_the_class_of_a_component(tmp_path):
    found = component_class(tmp_path, {"text_encoder": ["transformers", "CLIPTextModel"]}, "text_encoder")
    assert found == (transformers.CLIPTextModel, True)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ([], "names no library and class for its vae: get it again"),
        (None, "names no library and class for its vae"),
        ([None, None], "names no library and class for its vae"),
        (["own", "AutoencoderKL"], "has a vae of own, AutoencoderKL: give one of diffusers' own"),
        (["diffusers", "Own"], "has a vae of diffusers, Own: give one of diffusers' own"),
    ],
)
def test_a_component_of_no_known_class(tmp_path, named, words):
    with pytest.raises(InputError, match=words):
        component_class(tmp_path, {"vae": named}, "vae")
