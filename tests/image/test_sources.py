"""What --model may be, and what is refused before any weights are read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from selfnpo_core.errors import InputError
from selfnpo_image import loading
from selfnpo_image.base import check_network
from selfnpo_image.families import find_base, kind_of_index
from selfnpo_image.loading import check_scheduler, load_pipeline
from selfnpo_image.models import KNOWN, find_source
from selfnpo_image.sd3 import SD3
from selfnpo_image.sd15 import SD15
from selfnpo_image.sdxl import SDXL


def test_known_names_are_hub_ids() -> None:
    assert find_source("sd15").location == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert find_source("dreamshaper").location == "Lykon/dreamshaper-8"
    assert all(find_source(name).kind == "hub" for name in KNOWN if name != "demo")


def test_other_names_are_hub_ids_folders_or_files(folder: Path, tmp_path: Path) -> None:
    assert find_source("someone/some-model.v2").kind == "hub"
    assert find_source(str(folder)).kind == "folder"
    file = tmp_path / "model.safetensors"
    file.touch()
    source = find_source(str(file), folder)
    assert (source.kind, source.config) == ("file", folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sd51", "did you mean sd15"),
        ("nothing-like-it", "known are demo, sd15, dreamshaper, sdxl"),
        ("./no/such/folder", "does not exist"),
        ("gone.safetensors", "does not exist"),
        ("a/b/c", "does not exist"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_source(name)


def test_pickles_and_other_files_are_refused(tmp_path: Path, folder: Path) -> None:
    for suffix in ("ckpt", "pt", "bin"):
        (tmp_path / f"model.{suffix}").write_bytes(b"x")
        with pytest.raises(InputError, match="pickle"):
            find_source(str(tmp_path / f"model.{suffix}"))
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(InputError, match="neither a folder nor"):
        find_source(str(tmp_path / "model.txt"))
    with pytest.raises(InputError, match="leave it out"):
        find_source("sd15", folder)
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(InputError, match="not a diffusers folder"):
        find_source(str(tmp_path / "m.safetensors"), tmp_path)


def test_a_folder_with_pickled_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"pickled weights.* in vae"):
        load_pipeline(find_base(str(copy)))
    weights.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match="no weights in vae"):
        load_pipeline(find_base(str(copy)))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "addition_embed_type None, not of the SDXL"),
        ("model_index.json", {"_class_name": "CogVideoXPipeline"}, "is a CogVideoXPipeline: give one of"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type"),
    ],
)
def test_folders_of_other_families(
    folder: Path, tmp_path: Path, part: str, change: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / part).read_text())
    (copy / part).write_text(json.dumps({**config, **change}))
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"never read")
    with pytest.raises(InputError, match=message) as caught:
        load_pipeline(find_base(str(copy)))
    assert "\n" not in str(caught.value)


def test_damaged_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no model_index\.json"):
        load_pipeline(find_base(str(tmp_path)))
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_pipeline(find_base(str(copy)))
    shutil.rmtree(copy / "tokenizer")
    shutil.copy(folder / "unet" / weights.name, weights)
    with pytest.raises(InputError, match="tokenizer"):
        load_pipeline(find_base(str(copy)))
    (copy / "unet" / "config.json").write_text("{")
    with pytest.raises(InputError, match="get the model again"):
        load_pipeline(find_base(str(copy)))


def test_configurations_of_the_families_pass() -> None:
    kind = kind_of_index({"_class_name": "StableDiffusionPipeline"}, "m")
    assert kind is SD15.kind
    check_network(kind, {"_class_name": "UNet2DConditionModel", "in_channels": 4, "addition_embed_type": None}, "m")
    check_network(SDXL.kind, {"addition_embed_type": "text_time"}, "m")
    assert check_scheduler(DDIMScheduler(prediction_type="v_prediction"), kind, "m") == "v_prediction"
    with pytest.raises(InputError, match="predicts 'flow'"):
        check_scheduler(FlowMatchEulerDiscreteScheduler(), kind, "m")
    assert check_scheduler(FlowMatchEulerDiscreteScheduler(), SD3.kind, "m") == "flow"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.diffusion_model.joint_blocks.0.x.weight", "a video or transformer model"),
        ("double_blocks.0.img_attn.weight", "a FLUX checkpoint"),
        ("cond_stage_model.model.ln_final.weight", "a Stable Diffusion 2"),
        ("lora_unet_down_blocks_0.lora_up.weight", "a LoRA"),
        ("unet.down_blocks.0.lora_A.weight", "a LoRA"),
        ("down_blocks.0.resnets.0.conv1.weight", "a bare UNet"),
        ("patch_embed.proj.weight", "a video or transformer model"),
        ("something.else", "unknown contents"),
    ],
)
def test_single_files_of_other_families(tmp_path: Path, name: str, what: str) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=what):
        load_pipeline(find_base(str(tmp_path / "m.safetensors")))


def test_an_inpainting_file_is_refused(tmp_path: Path) -> None:
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": (32, 9, 3, 3), "cond_stage_model.transformer.x": (1,)}
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="9 input channels"):
        load_pipeline(find_base(str(tmp_path / "m.safetensors")))


def test_without_a_network_the_error_says_what_to_do(offline: None) -> None:
    with pytest.raises(InputError, match="hf download Lykon/dreamshaper-8 --local-dir DIR") as caught:
        load_pipeline(find_base("dreamshaper"))
    assert "\n" not in str(caught.value)


def test_a_known_model_is_found_without_the_hub(offline: None) -> None:
    base = find_base("sdxl")
    assert (base.family, base.kind, base.known, base.network) == ("sdxl", SDXL.kind, KNOWN["sdxl"], None)


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "demo"])
def test_a_known_model_is_known_by_its_hub_id_too(name: str, offline: None) -> None:
    base = find_base(KNOWN[name].hub_id)
    assert (base.known, base.family) == (KNOWN[name], KNOWN[name].family)


def test_a_model_on_the_hub_is_fetched_once_and_is_then_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(repo: str, place: str = "everything", **_: Any) -> str:
        asked.append(place)
        return str(folder if place == "everything" else folder / place)

    monkeypatch.setattr(loading, "hf_hub_download", fetch)
    monkeypatch.setattr(StableDiffusionPipeline, "download", fetch)
    base = find_base("someone/tiny")
    assert (base.source.kind, base.family, asked) == ("hub", "sd15", ["model_index.json"])
    here = loading.local(base)
    assert (here.name, here.source.kind, here.source.location) == ("someone/tiny", "folder", str(folder))
    assert asked == ["model_index.json", "unet/config.json", "everything"]
    load_pipeline(here)
    assert len(asked) == 3
    with pytest.raises(InputError, match=r"an SD1\.5 model, not of the SDXL family"):
        SDXL(base)
