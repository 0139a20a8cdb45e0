"""What `export --format kohya` writes for ComfyUI, without a model: names, the workflow's nodes, what it says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny import sd15

from selfnpo_core.models.sources import Source
from selfnpo_core.negative import Factors
from selfnpo_core.weights import exporting
from selfnpo_core.weights.npo_folder import load_npo
from selfnpo_image import kohya
from selfnpo_image.base import ImageBase
from selfnpo_image.sd15 import SD15
from selfnpo_image.sdxl import SDXL

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
SETTINGS: dict[str, Any] = {"side": 512, "beta": 0.5, "guidance_scale": 5.0, "checkpoint": "x.safetensors"}


def base(kind: Any, place: str, form: Any = "file", config: Path | None = None) -> ImageBase:
    source = Source(name=place, kind=form, location=place, config=config)
    return ImageBase(source=source, family=kind.kind.name, kind=kind.kind)


def negative_side(**how: Any) -> list[dict[str, Any]]:
    """From the sampler back to what is asked, hooked node first; the whole graph hangs together."""
    nodes = kohya.workflow("npo.safetensors", **SETTINGS, **how)
    for node in nodes.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in nodes
    sampler = next(node for node in nodes.values() if node["class_type"] == "KSampler")
    side = [nodes[sampler["inputs"]["negative"][0]]]
    assert nodes[side[0]["inputs"]["hooks"][0]]["inputs"]["strength_model"] == 0.5
    while before := side[-1]["inputs"].get("cond_NEW") or side[-1]["inputs"].get("conditioning"):
        side.append(nodes[before[0]])
    return side


def test_the_negative_side_is_asked_what_the_pipeline_asks() -> None:
    null, zeroed, prompt, both = (
        negative_side(**how)
        for how in ({}, {"zeroed": True}, {"condition": "prompt"}, {"condition": "prompt", "zeroed": True})
    )
    assert [node["class_type"] for node in null] == ["ConditioningSetProperties", "CLIPTextEncode"]
    assert null[-1]["inputs"]["text"] == ""
    assert [node["class_type"] for node in zeroed][1:] == ["ConditioningZeroOut", "CLIPTextEncode"]
    assert prompt[-1]["inputs"]["text"] == "a lighthouse on a cliff in a storm"
    assert [node["class_type"] for node in both] == ["ConditioningSetProperties", "CLIPTextEncode"]


def test_which_models_zero_the_null_condition(tmp_path: Path) -> None:
    assert kohya.zeroes_null(base(SDXL, "/models/x.safetensors"))
    assert not kohya.zeroes_null(base(SD15, "/models/x.safetensors"))
    (tmp_path / "model_index.json").write_text('{"force_zeros_for_empty_prompt": false}')
    for found in (base(SDXL, str(tmp_path), "folder"), base(SDXL, "x.safetensors", config=tmp_path)):
        assert not kohya.zeroes_null(found)
    (tmp_path / "model_index.json").write_text("{}")
    assert kohya.zeroes_null(base(SDXL, str(tmp_path), "folder"))
    assert kohya.zeroes_null(base(SDXL, "stabilityai/stable-diffusion-xl-base-1.0", "hub"))


@pytest.mark.parametrize(
    ("place", "form", "name"),
    [
        ("/home/me/models/juggernaut v9.safetensors", "file", "juggernaut v9.safetensors"),
        ("models/deep/dreamshaper", "folder", "dreamshaper.safetensors"),
        ("owner/some-model", "hub", "some-model.safetensors"),
    ],
)
def test_the_checkpoint_goes_by_its_own_name(place: str, form: str, name: str) -> None:
    found = base(SD15, place, form)
    assert kohya.checkpoint_of(found) == name
    factors = Factors(down=torch.zeros(1, 2), up=torch.zeros(2, 1), alpha=1.0)
    said = kohya.notes({ATTENTION: factors}, name, found)
    assert "6 %" in said
    assert "fp16" in said
    assert (f"if yours is not called {name}" in said) == (form != "file")
    assert "three times" in kohya.notes({ATTENTION: factors, "conv_in": factors}, name, found)


def test_layers_of_a_text_encoder_do_not_become_the_unets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unet: Any = sd15().unet
    layer = f"lora_unet_{ATTENTION.replace('.', '_')}"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {
        f"{name}.lora_{end}.weight": torch.ones(shape)
        for name in (layer, text)
        for end, shape in (("down", (2, 32)), ("up", (32, 2)))
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    backbone: Any = SimpleNamespace(denoiser=unet)
    lora, errors = exporting.near_lora(load_npo(tmp_path / "lora.safetensors"), backbone, None)
    assert SD15.kind.kohya is not None
    written = kohya.tensors(lora, SD15.kind.kohya, unet.config)
    assert sorted(written) == [f"{layer}.{end}" for end in ("alpha", "lora_down.weight", "lora_up.weight")]
    assert errors == {}
    assert "left out are 1 layers of text_encoder" in caplog.text
