"""Negative guidance on the relatives of the text-to-image pipelines: a LoRA on the negative rows of one forward against
the same weights, as whole differences, in a forward of their own."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.core.adapters.reference import add_lora, assert_same, delta_of
from tests.tiny import sd15, sdxl

from selfnpo_core import NegativeAdapters, NegativeDelta

SIDE = 32


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def mask() -> Image.Image:
    half = np.zeros((SIDE, SIDE), np.uint8)
    half[:, SIDE // 2 :] = 255
    return Image.fromarray(half)


def as_kind(kind: str, made: Callable[[], Any], **more: Any) -> Any:
    """The tiny model's components, those that this class takes, as another of diffusers' classes."""
    taken, parts = signature(getattr(diffusers, kind).__init__).parameters, {**made().components, **more}
    parts["requires_safety_checker"] = False
    return getattr(diffusers, kind)(**{name: part for name, part in parts.items() if name in taken})


def controlnet(made: Callable[[], Any]) -> Any:
    torch.manual_seed(3)
    net = diffusers.ControlNetModel.from_unet(made().unet, conditioning_embedding_out_channels=(16, 32))
    for name, parameter in net.named_parameters():
        if "controlnet" in name and "cond_embedding" not in name:  # zero at first, so without effect
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def t2i_adapter() -> Any:
    torch.manual_seed(4)
    return diffusers.T2IAdapter(channels=[32, 64], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")


IMAGE = {"image": picture(), "strength": 0.8}
PIPELINES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "StableDiffusionImg2ImgPipeline": (lambda: as_kind("StableDiffusionImg2ImgPipeline", sd15), IMAGE),
    "StableDiffusionInpaintPipeline": (
        lambda: as_kind("StableDiffusionInpaintPipeline", sd15),
        {**IMAGE, "mask_image": mask(), "height": SIDE, "width": SIDE},
    ),
    "StableDiffusionControlNetPipeline": (
        lambda: as_kind("StableDiffusionControlNetPipeline", sd15, controlnet=controlnet(sd15)),
        {"image": picture()},
    ),
    "StableDiffusionAdapterPipeline": (
        lambda: as_kind("StableDiffusionAdapterPipeline", sd15, adapter=t2i_adapter()),
        {"image": picture(), "height": SIDE, "width": SIDE},
    ),
    "StableDiffusionXLImg2ImgPipeline": (lambda: as_kind("StableDiffusionXLImg2ImgPipeline", sdxl), IMAGE),
    "StableDiffusionXLInpaintPipeline": (
        lambda: as_kind("StableDiffusionXLInpaintPipeline", sdxl),
        {**IMAGE, "mask_image": mask(), "height": SIDE, "width": SIDE},
    ),
    "StableDiffusionXLControlNetPipeline": (
        lambda: as_kind("StableDiffusionXLControlNetPipeline", sdxl, controlnet=controlnet(sdxl)),
        {"image": picture()},
    ),
    "StableDiffusionXLAdapterPipeline": (
        lambda: as_kind("StableDiffusionXLAdapterPipeline", sdxl, adapter=t2i_adapter()),
        {"image": picture(), "height": SIDE, "width": SIDE},
    ),
}


def drawn(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "guidance_scale": 5.0, "num_images_per_prompt": 2, **call}
    generator = torch.Generator().manual_seed(1)
    result: torch.Tensor = pipe("a red fox", generator=generator, output_type="latent", **call).images
    return result


@pytest.mark.parametrize("name", PIPELINES)
def test_equals_whole_weights_in_a_forward_of_their_own(name: str) -> None:
    make, call = PIPELINES[name]
    pipe = make()
    add_lora(pipe.unet, "npo", seed=1)
    delta = delta_of(pipe.unet, "npo")
    with NegativeAdapters.attach(pipe, {"npo": 0.7}):
        one = drawn(pipe, call)
    pipe.unet.disable_adapters()
    plain = drawn(pipe, call)
    with NegativeDelta.attach(pipe, delta, beta=0.7):
        assert_same(drawn(pipe, call), one)
    assert (plain - one).abs().max() > 1e-2
    assert torch.equal(drawn(pipe, call), plain)


@pytest.mark.parametrize("made", [sd15, sdxl])
def test_with_an_ip_adapter(made: Callable[[], Any]) -> None:
    """Its keys and values are of the picture for the positive rows, of zeros for the negative ones."""
    pipe, width = made(), 24
    cross = pipe.unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    keys: dict[str, torch.Tensor] = {}
    number = 1
    for name in pipe.unet.attn_processors:
        if name.endswith("attn2.processor"):
            hidden = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            keys |= {
                f"{number}.to_k_ip.weight": random(hidden, cross),
                f"{number}.to_v_ip.weight": random(hidden, cross),
            }
            number += 2
    projection = {
        "proj.weight": random(4 * cross, width),
        "proj.bias": random(4 * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    add_lora(pipe.unet, "npo", seed=1)
    delta = delta_of(pipe.unet, "npo")
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys}])
    pipe.set_ip_adapter_scale(0.8)
    embeds = random(1, 1, width)
    call = {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(embeds), embeds])], "height": 32, "width": 32}
    with NegativeAdapters.attach(pipe, {"npo": 0.7}):
        one = drawn(pipe, call)
    pipe.unet.disable_adapters()
    plain = drawn(pipe, call)
    with NegativeDelta.attach(pipe, delta, beta=0.7):
        assert_same(drawn(pipe, call), one)
    assert (plain - one).abs().max() > 1e-2
    pipe.set_ip_adapter_scale(0.0)
    assert (drawn(pipe, call) - plain).abs().max() > 1e-3
