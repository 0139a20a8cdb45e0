"""Models as people have them: what a folder or a file lacks, says of itself, or is instead."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tests.image.conftest import Command
from tests.image.ldm import single_file
from tests.model_folders import copied, edit, publish_t5, saved
from tests.tiny import sd3, sd15, sdxl
from transformers import CLIPTextConfig, CLIPTextModel

from selfnpo_core.errors import InputError
from selfnpo_image.drawing import Settings, draw
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sd3 import SD3
from selfnpo_image.sd15 import SD15

Change = Callable[[Path], None]
MOST = "max_position_embeddings"


@pytest.fixture(scope="session")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD3 model."""
    return saved(sd3(), tmp_path_factory.mktemp("models") / "sd3")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return copied(folder, tmp_path / "copy")


def network_file(folder: Path) -> Path:
    return folder / "unet/diffusion_pytorch_model.safetensors"


def add(file: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> None:
    save_file({**load_file(file), **tensors}, file, metadata)


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_a_lost_vocabulary(joint: Path, tmp_path: Path, part: str) -> None:
    copy = copied(joint, tmp_path / "copy")
    for file in (copy / part).glob("tokenizer.json"):
        file.unlink()
    with pytest.raises(InputError, match=f"lacks the vocabulary of its {part}, which knows"):
        load_pipeline(find_base(str(copy)))
    with pytest.raises(InputError, match=f"lacks the vocabulary of its {part}, which knows"):
        SD3(find_base(str(copy)), device="cpu")


def test_t5_as_it_is_published(joint: Path, tmp_path: Path) -> None:
    """`spiece.model`, and no tokenizer.json."""
    copy = copied(joint, tmp_path / "copy")
    publish_t5(copy / "tokenizer_3")
    backbone = SD3(find_base(str(copy)), device="cpu")
    backbone.embed(["a red fox", "two blue hats"])
    one, other = backbone._table[0][:2, 77:]
    assert not torch.equal(one, other)


def config(**changes: Any) -> dict[str, Any]:
    return changes


@pytest.mark.parametrize(
    ("place", "changes", "words"),
    [
        ("model_index.json", config(_class_name=["my_pipeline", "Mine"]), r"a custom pipeline \(my_pipeline\.Mine\)"),
        ("model_index.json", config(_class_name=None), "is no diffusers pipeline"),
        ("model_index.json", config(_class_name=...), "is no diffusers pipeline"),
        ("model_index.json", config(_class_name="StableDiffusionXLImg2ImgPipeline"), "it is the SDXL refiner"),
        ("model_index.json", config(_class_name="CogVideoXPipeline"), "a video model, which selfnpo-video takes"),
        ("model_index.json", config(scheduler=["diffusers", "NoScheduler"]), "scheduler NoScheduler, which diffusers"),
        ("unet/config.json", config(sample_size="x"), "has sample_size x in unet/config.json"),
        ("unet/config.json", config(sample_size=[16]), r"has sample_size \[16\] in unet/config.json"),
        ("unet/config.json", config(sample_size=None), "does not say what size it was made for .* give height and"),
        ("unet/config.json", config(block_out_channels=None), "cannot be loaded"),
        ("unet/config.json", config(quantization_config={"quant_method": "bitsandbytes"}), r"weights \(bitsandbytes\)"),
        ("vae/config.json", config(block_out_channels=None), "cannot be loaded"),
        ("scheduler/scheduler_config.json", config(num_train_timesteps=None), "cannot be loaded"),
        ("scheduler/scheduler_config.json", config(beta_schedule=["x"]), "cannot be loaded"),
        ("scheduler/scheduler_config.json", config(prediction_type="edm"), "predicts 'edm'"),
        ("scheduler/scheduler_config.json", config(rescale_betas_zero_snr=True), "zero terminal SNR that predicts eps"),
    ],
)
def test_fields_that_are_absent_null_or_a_list(copy: Path, place: str, changes: dict[str, Any], words: str) -> None:
    """Said of a sketch, which is what `--dry-run` looks at, and of the model itself."""
    edit(copy / place, **changes)
    for made in (lambda base: SD15.sketch(base), lambda base: SD15(base, device="cpu")):
        with pytest.raises(InputError, match=words) as error:
            made(find_base(str(copy)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sides"),
    [
        (config(sample_size=None), {"height": 32, "width": 16}),
        (config(sample_size=[16, 8]), {}),
        (config(sample_size=[4, 8]), {"height": 32}),
        (config(), {"height": 16}),
        (config(), {"height": 32, "width": 16}),
    ],
)
def test_a_size_that_is_null_a_list_or_given_in_part(
    copy: Path, changes: dict[str, Any], sides: dict[str, int]
) -> None:
    """The latter: SD1.5's pipeline takes its own size for both where one is given."""
    edit(copy / "unet/config.json", **changes)
    base = find_base(str(copy))
    backbone = SD15(base, device="cpu", **sides)
    ((_, picture),) = draw(
        load_pipeline(base), ["a fox"], [0], Settings(steps=1, guidance_scale=1.0, **sides), kind=base.kind
    )
    wanted = {"height": 32, "width": 32} | ({"width": 16} if changes.get("sample_size") else {}) | sides
    assert (picture.height, picture.width) == backbone.size == (wanted["height"], wanted["width"])


def test_a_null_size_is_said_before_anything_is_drawn(
    copy: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copy / "unet/config.json", sample_size=None)
    assert command("sample", "--model", copy, "--prompt", "a", "--height", 32, "--output", tmp_path / "out") == 2
    assert "does not say what size it was made for" in capsys.readouterr().err


@pytest.mark.parametrize("length", [None, ..., [77], "77", 1000])
def test_a_tokenizer_that_does_not_say_how_many_tokens(copy: Path, length: Any) -> None:
    edit(copy / "tokenizer/tokenizer_config.json", model_max_length=length)
    backbone = SD15(find_base(str(copy)), device="cpu")
    backbone.embed(["a fox " * 100])
    assert backbone._table[0].shape[1] == 77


@pytest.mark.parametrize("length", [None, ..., 1e30])
@pytest.mark.parametrize("positions", [24, 96])
def test_the_encoders_positions_decide_where_the_tokenizer_is_silent(
    tmp_path: Path, length: Any, positions: int
) -> None:
    """As a model to train, as a sketch, and as a pipeline."""
    pipe = sd15()
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(**pipe.text_encoder.config.to_dict() | {MOST: positions}))
    pipe.save_pretrained(tmp_path)
    edit(tmp_path / "tokenizer/tokenizer_config.json", model_max_length=length)
    base = find_base(str(tmp_path))
    backbone, sketch = SD15(base, device="cpu"), SD15.sketch(base)
    backbone.embed(["a fox " * 100])
    assert backbone._table[0].shape[1] == positions
    assert sketch is not None
    assert sketch._row_shapes == backbone._row_shapes
    ((_, picture),) = draw(
        load_pipeline(base), ["a fox " * 100], [0], Settings(steps=1, guidance_scale=2.0), kind=SD15.kind
    )
    assert picture.size == (32, 32)


def test_timesteps_that_shift_by_resolution(joint: Path, tmp_path: Path) -> None:
    copy = copied(joint, tmp_path / "copy")
    edit(copy / "scheduler/scheduler_config.json", use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    base = find_base(str(copy))
    pipe, backbone = load_pipeline(base), SD3(base, height=48, width=32, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    pipe("a fox", num_inference_steps=5, height=48, width=32, guidance_scale=1.0, output_type="latent")
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    torch.testing.assert_close(backbone.schedule.grid(5), pipe.scheduler.timesteps, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(
    "parts", [("unet", "vae", "text_encoder"), ("text_encoder",), ("vae",)], ids=["all", "text", "vae"]
)
@pytest.mark.parametrize("variant", ["bf16", "fp16"])
def test_components_that_are_variants_only(folder: Path, copy: Path, parts: tuple[str, ...], variant: str) -> None:
    for part in parts:
        for file in (copy / part).glob("*.safetensors"):
            file.rename(file.with_suffix(f".{variant}.safetensors"))
    rest = copy / "unet/diffusion_pytorch_model.safetensors"
    if rest.is_file():  # a variant where there is a plain file too is not taken
        save_file({"x": torch.zeros(1)}, rest.with_suffix(f".{variant}.safetensors"))
    base = find_base(str(copy))
    assert base.variants == dict.fromkeys(parts, variant)
    one, other = load_pipeline(base), load_pipeline(find_base(str(folder)))
    for part in ("unet", "vae", "text_encoder"):
        a, b = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert all(torch.equal(a[name], b[name]) for name in b)
    backbone = SD15(base, device="cpu")
    backbone.embed(["a fox"])


def test_other_variants_in_each_component(copy: Path) -> None:
    for part, variant in (("unet", "bf16"), ("vae", "fp16")):
        for file in (copy / part).glob("*.safetensors"):
            file.rename(file.with_suffix(f".{variant}.safetensors"))
    assert load_pipeline(find_base(str(copy)), dtype=torch.float16).unet.dtype == torch.float16


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file(single_file(sd15()), path)
    return path


@pytest.mark.parametrize(
    ("names", "metadata", "prediction", "zero_snr"),
    [
        ((), {}, "epsilon", False),
        (("v_pred",), {}, "v_prediction", False),
        (("v_pred", "ztsnr"), {}, "v_prediction", True),
        ((), {"modelspec.prediction_type": "v"}, "v_prediction", False),
    ],
)
def test_a_files_own_word_holds(
    file: Path,
    folder: Path,
    tmp_path: Path,
    names: tuple[str, ...],
    metadata: dict[str, str],
    prediction: str,
    zero_snr: bool,
) -> None:
    """With --model-config of a folder that predicts epsilon; in the sketch, in training and in sampling."""
    marked = shutil.copy(file, tmp_path / "m.safetensors")
    add(Path(marked), metadata, **{name: torch.zeros(0) for name in names})
    base = find_base(str(marked), folder)
    pipe = load_pipeline(base)
    assert pipe.scheduler.config.prediction_type == prediction
    for backbone in (SD15.sketch(base), SD15(base, device="cpu")):
        assert backbone is not None
        assert backbone.prediction_type == prediction
        first = backbone.schedule.grid(4)[:1]
        assert (backbone.schedule.at(first, torch.zeros(1, 1)).alpha == 0) == zero_snr
    pipe.scheduler.set_timesteps(4)
    assert first[0] == pipe.scheduler.timesteps[0]


def test_a_file_says_epsilon_and_its_folder_v(file: Path, copy: Path, tmp_path: Path) -> None:
    marked = shutil.copy(file, tmp_path / "m.safetensors")
    add(Path(marked), {"modelspec.prediction_type": "epsilon"})
    edit(copy / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert SD15(find_base(str(file), copy), device="cpu").prediction_type == "v_prediction"
    assert SD15(find_base(str(marked), copy), device="cpu").prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("names", "metadata", "words"),
    [
        (("edm_mean", "edm_std"), {}, "parametrised as EDM, which is not supported"),
        (("edm_vpred.sigma_max",), {}, "parametrised as EDM"),
        ((), {"modelspec.prediction_type": "edm"}, "parametrised as EDM"),
        ((), {"modelspec.prediction_type": "rectified_flow"}, "predicts 'flow'"),
        (("ztsnr",), {}, "zero terminal SNR that predicts epsilon"),
        (("v_pred",), {"modelspec.prediction_type": "epsilon"}, "both epsilon and v_prediction"),
        (("model.diffusion_model.out.2.scale_weight",), {}, "quantised weights"),
    ],
)
def test_files_of_another_parametrisation(
    file: Path, folder: Path, tmp_path: Path, names: tuple[str, ...], metadata: dict[str, str], words: str
) -> None:
    marked = shutil.copy(file, tmp_path / "m.safetensors")
    add(Path(marked), metadata, **{name: torch.zeros(1) for name in names})
    with pytest.raises(InputError, match=words):
        find_base(str(marked), folder)


def say_v(folder: Path) -> None:
    add(network_file(folder), v_pred=torch.zeros(0))


def say_v_beside(folder: Path) -> None:
    add(network_file(folder), {"modelspec.prediction_type": "v"})


def edm_scheduler(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"])


def scaled(folder: Path) -> None:
    add(network_file(folder), **{"conv_in.weight_scale": torch.ones(1)})


def scaled_text(folder: Path) -> None:
    add(folder / "text_encoder/model.safetensors", **{"text_model.final_layer_norm.weight_scale": torch.ones(1)})


def only_gguf(folder: Path) -> None:
    network_file(folder).rename(folder / "unet/model.gguf")


def without_a_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (say_v, "unet says of itself v_prediction, but .*scheduler_config.json says epsilon"),
        (say_v_beside, "unet says of itself v_prediction, but"),
        (edm_scheduler, "parametrised as EDM"),
        (scaled, "unet/diffusion_pytorch_model.safetensors holds quantised weights"),
        (scaled_text, "text_encoder/model.safetensors holds quantised weights"),
        (only_gguf, r"only quantised weights \(GGUF\) in unet"),
        (without_a_tokenizer, "tokenizer"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_folders_that_are_refused(copy: Path, change: Change, words: str) -> None:
    change(copy)
    with pytest.raises(InputError, match=words) as error:
        load_pipeline(find_base(str(copy)))
    assert "\n" not in str(error.value)


def test_one_tensor_in_8_bits_rounds_no_other(folder: Path, copy: Path) -> None:
    weights = load_file(network_file(copy))
    first = min(weights)
    save_file({**weights, first: weights[first].to(torch.float8_e4m3fn)}, network_file(copy))
    one, other = (load_pipeline(find_base(str(path))).unet.state_dict() for path in (copy, folder))
    assert {name for name in one if not torch.equal(one[name], other[name])} == {first}


STEM = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([STEM, "conditioner.embedders.0.model.ln_final.weight"], "the SDXL refiner"),
        ([STEM, "first_stage_model.decoder.conv_in.weight"], "a UNet without its text encoders"),
        (["down_blocks.0.resnets.0.norm1.weight"], "a bare UNet"),
        (["text_model.final_layer_norm.weight"], "a bare text encoder"),
        (["first_stage_model.decoder.conv_in.weight"], "a bare VAE"),
        (["lycoris_unet_mid_block.hada_w1_a"], r"a LoRA \(negative weights go to --npo, others to --preference\)"),
        (["unet.mid_block.processor.to_q_lora.down.weight"], "a LoRA"),
        (["base_model.model.conv_in.lora_A.weight"], "a LoRA"),
        (["lora_unet_mid.oft_blocks", "x.oft_diag"], "a LoRA"),
        (["clip_l", "clip_g"], "a textual inversion"),
        (["control_model.input_hint_block.0.weight"], "a ControlNet"),
        (["ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (["transformer_blocks.0.attn1.to_q.weight"], "a video or transformer model"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, names: list[str], what: str) -> None:
    save_file({name: torch.zeros(4, 4, 1, 1) for name in names}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=f"m.safetensors is {what}.*: give a whole checkpoint of SD1.5 or SDXL, or a"):
        find_base(str(tmp_path / "m.safetensors"))


def lora_folder(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")


def run_folder(folder: Path) -> None:
    (folder / "npo").mkdir()
    (folder / "npo/npo_config.json").write_text("{}")


def unet_folder(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))


def clip_folder(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel"]}))


def files_folder(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "checkpoint.safetensors")


def hub_folder(folder: Path) -> None:
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "snapshots/abc/model_index.json").write_text("{}")


def damaged_folder(folder: Path) -> None:
    (folder / "config.json").write_text("[")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lora_folder, r", it holds a LoRA \(negative weights go to --npo"),
        (run_folder, ", it holds a LoRA"),
        (unet_folder, ", it is a UNet2DConditionModel alone: give the whole diffusers folder"),
        (clip_folder, ", it is a CLIPTextModel alone"),
        (files_folder, "give that, such as .*checkpoint.safetensors"),
        (hub_folder, "but snapshots/abc in it has: give that"),
        (damaged_folder, ": give a diffusers folder"),
    ],
)
def test_folders_that_are_something_else(tmp_path: Path, make: Change, words: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=f"has no model_index.json{words}" if words[0] in ",:" else words):
        find_base(str(tmp_path))


def test_a_second_tokenizer_is_looked_at_too(tmp_path: Path) -> None:
    sdxl().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_2/tokenizer.json").unlink()
    with pytest.raises(InputError, match="lacks the vocabulary of its tokenizer_2"):
        load_pipeline(find_base(str(tmp_path)))
