"""LoRAs of transformers in ComfyUI's names, those of first checkpoints, where diffusers' own converters find them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from peft import LoraConfig
from safetensors.torch import load_file
from tests.image.conftest import Command
from tests.tiny import PIPELINES
from torch import Tensor, nn

from selfnpo_core.errors import InputError
from selfnpo_core.weights.lora_file import read_lora
from selfnpo_core.weights.lora_layers import Lora, layers_in
from selfnpo_image import comfyui
from selfnpo_image.backbone import save_lora
from selfnpo_image.families import FAMILIES, find_base
from selfnpo_image.kinds import CONFIGS
from selfnpo_image.loading import known_configs

TRANSFORMERS = ["sd3", "qwen-image", "z-image", "flux2-klein"]
TO_DIFFUSERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "sd3": convert_sd3_transformer_checkpoint_to_diffusers,
    "qwen-image": dict,  # its first release is diffusers'
    "z-image": convert_z_image_transformer_checkpoint_to_diffusers,
    "flux2-klein": convert_flux2_transformer_checkpoint_to_diffusers,
}
GOLDEN = {
    "sd3": {
        "transformer_blocks.3.attn2.to_k": ("joint_blocks.3.x_block.attn2.qkv", 1),
        "transformer_blocks.0.ff_context.net.2": ("joint_blocks.0.context_block.mlp.fc2", None),
    },
    "qwen-image": {"transformer_blocks.7.txt_mlp.net.2": ("transformer_blocks.7.txt_mlp.net.2", None)},
    "z-image": {
        "context_refiner.1.attention.to_v": ("context_refiner.1.attention.qkv", 2),
        "layers.29.feed_forward.w3": ("layers.29.feed_forward.w3", None),
    },
    "flux2-klein": {
        "transformer_blocks.0.attn.add_q_proj": ("double_blocks.0.txt_attn.qkv", 0),
        "single_transformer_blocks.19.attn.to_qkv_mlp_proj": ("single_blocks.19.linear1", None),
    },
}


class Partial(dict[str, Tensor]):
    """A checkpoint of some weights; what else a converter takes out of it is zeros."""

    def pop(self, name: str, *default: Any) -> Tensor:
        return super().pop(name, torch.zeros(6, 1))

    def __missing__(self, name: str) -> Tensor:
        return torch.zeros(6, 1)


def trained(family: str, targets: str, folder: Path) -> Lora:
    """A LoRA of random numbers on a tiny model, as a run saves it; its alpha is not its rank."""
    pipe, made = PIPELINES[family](), FAMILIES[family]
    pipe.transformer.add_adapter(LoraConfig(r=3, lora_alpha=2, target_modules=made.lora_targets[targets]), "npo")
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    save_lora(made.kind, pipe.transformer, folder, "npo")
    return layers_in(read_lora(folder / "pytorch_lora_weights.safetensors"), pipe.transformer)


@pytest.mark.parametrize("targets", ["attention", "all"])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_layer_is_where_the_first_layout_has_it(family: str, targets: str, tmp_path: Path) -> None:
    lora = trained(family, targets, tmp_path)
    written = comfyui.tensors(lora, FAMILIES[family].kind.comfy)
    names = {name.rpartition(".lora_A.weight")[0] for name in written if name.endswith("lora_A.weight")}
    assert {name.removesuffix(".alpha") for name in written if name.endswith(".alpha")} == names
    changes = Partial()
    for name in names:
        down, up = written[f"{name}.lora_A.weight"], written[f"{name}.lora_B.weight"]
        scale = float(written[f"{name}.alpha"]) / down.shape[0]  # as ComfyUI has it
        changes[f"{name.removeprefix('diffusion_model.')}.weight"] = scale * up @ down
    found = TO_DIFFUSERS[family](changes)
    for layer, factors in lora.items():
        torch.testing.assert_close(found[f"{layer}.weight"], factors.product(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.iterdir()))
def test_all_layers_of_the_real_architectures_have_a_place_of_their_own(name: str) -> None:
    base = find_base(name)
    form = base.kind.comfy
    if form is None:
        pytest.skip("a UNet has kohya's names")
    config = known_configs(base)[f"{base.kind.denoiser}/config.json"]
    with init_empty_weights():
        network = getattr(diffusers, base.kind.network).from_config(dict(config))
    targets = FAMILIES[base.family].lora_targets["all"]
    network.add_adapter(LoraConfig(r=1, target_modules=targets), "npo")
    layers = [path for path, module in network.named_modules() if hasattr(module, "lora_A")]
    places = [comfyui.place(layer, form) for layer in layers]
    assert len(set(places)) == len(layers) >= 100


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_names_are_those_of_golden_files(family: str) -> None:
    form = FAMILIES[family].kind.comfy
    assert {layer: comfyui.place(layer, form) for layer in GOLDEN[family]} == GOLDEN[family]
    with pytest.raises(InputError, match="'x_embedder' has no name in ComfyUI's model"):
        comfyui.place("x_embedder", form)


def test_by_the_command(tmp_path: Path, command: Command) -> None:
    PIPELINES["z-image"]().save_pretrained(tmp_path / "model")
    lora = trained("z-image", "attention", tmp_path / "lora")
    words = ("--npo", tmp_path / "lora/pytorch_lora_weights.safetensors", "--model", tmp_path / "model")
    assert command("export", *words, "--format", "kohya", "--output", tmp_path / "npo.safetensors") == 0
    written = load_file(tmp_path / "npo.safetensors")
    assert len(written) == len(lora) // 4 * 2 * 3  # of four layers of attention, two matrices
    nodes = json.loads((tmp_path / "npo.comfyui.json").read_text())
    assert nodes["6"]["inputs"]["lora_name"] == "npo.safetensors"
    assert nodes["9"]["inputs"]["negative"] == ["7", 0]
    assert nodes["7"]["inputs"]["hooks"] == ["6", 0]
    assert nodes["2"]["inputs"] == {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}
    assert "has not been run in ComfyUI" in (tmp_path / "npo.comfyui.txt").read_text()
