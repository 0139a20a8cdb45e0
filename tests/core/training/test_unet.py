"""The engine on a diffusers network: adapters that diffusers knows, checkpointing, a file that stock pipelines load."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe
from torch import Tensor, nn

from selfnpo_core import NULL
from selfnpo_core.models.backbone import Backbone
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.training import train
from selfnpo_core.training.checkpoint import newest_checkpoint
from selfnpo_core.weights.npo_folder import load_npo


def tiny_unet() -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )


class UnetBackbone(ToyBackbone):
    latent_shape: tuple[int, ...] = (4, 8, 8)

    def __init__(self):
        super().__init__()
        self.denoiser: nn.Module = tiny_unet()
        self.base_hash = weights_hash(self.denoiser)
        attention = ["to_q", "to_k", "to_v", "to_out.0"]
        self.lora_targets: Mapping[str, Sequence[str] | str] = {
            "attention": attention,
            "all": [*attention, "conv1", "conv2", "proj_in", "proj_out", "ff.net.2"],
        }

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        text = self.table[prompt][:, None].expand(-1, 3, -1)
        return self.denoiser(x_t, t, encoder_hidden_states=text).sample

    def save_lora(self, directory: Path, adapter: str) -> None:
        layers = get_peft_model_state_dict(self.denoiser, adapter_name=adapter)
        metadata = self.denoiser.peft_config[adapter].to_dict()
        StableDiffusionPipeline.save_lora_weights(
            directory, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata
        )


def test_the_toys_are_backbones():
    assert isinstance(ToyBackbone(), Backbone)
    assert isinstance(UnetBackbone(), Backbone)


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_the_result_is_loaded_by_diffusers_and_predicts_as_the_student_did(tmp_path, targets):
    backbone = UnetBackbone()
    network = backbone.denoiser
    out = train(
        backbone, toy_recipe(targets=targets, steps=2, lora_alpha=12.0), PROMPTS, tmp_path / "run", progress=False
    )
    assert not hasattr(network, "peft_config")
    assert weights_hash(network) == backbone.base_hash
    student = load_file(newest_checkpoint(tmp_path / "run/checkpoints") / "student.safetensors")
    npo = load_npo(out)
    assert {name.removeprefix("unet.") for name in npo.tensors} == set(student)

    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    question = x, torch.tensor([400, 700]), torch.tensor([0, NULL])
    with torch.no_grad():
        plain = backbone.predict(*question)
        network.load_lora_adapter(npo.path.parent, prefix="unet", weight_name=npo.path.name, adapter_name="npo")
        loaded = backbone.predict(*question)
        expected = tiny_unet()
        for name in {key.rpartition(".lora_")[0] for key in student}:
            module = expected.get_submodule(name)
            a, b = (student[f"{name}.lora_{part}.weight"].flatten(1) for part in "AB")
            module.weight += 12 / 4 * (b @ a).reshape(module.weight.shape)
        backbone.denoiser = expected
        merged = backbone.predict(*question)
    assert (loaded - plain).abs().max() > 1e-4
    torch.testing.assert_close(loaded, merged, rtol=0, atol=1e-5)


@pytest.mark.parametrize("train_", ["lora", "full"])
def test_gradient_checkpointing_changes_memory_only(tmp_path, train_):
    weights = []
    for name, checkpointing in (("with", True), ("without", False)):
        recipe = toy_recipe(train=train_, gradient_checkpointing=checkpointing, steps=2)
        train(UnetBackbone(), recipe, PROMPTS, tmp_path / name, progress=False)
        weights.append(load_npo(tmp_path / name).tensors)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor.float(), weights[1][name].float(), rtol=1e-3, atol=1e-5)
