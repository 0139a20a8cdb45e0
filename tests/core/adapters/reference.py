"""What negative guidance is compared with: two whole copies of the denoiser, one for each branch."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from tests.tiny import PIPELINES, sample
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_in", "proj_in", "time_emb_proj", "ff.net.2")
RANK, LORA_ALPHA = 4, 6


def denoiser(pipe: Any) -> Any:
    unet = pipe.components.get("unet")
    return pipe.transformer if unet is None else unet


def add_lora(model: nn.Module, name: str, seed: int, targets: tuple[str, ...] = ATTENTION, **config: Any) -> None:
    """As `load_lora_weights` does: afterwards it is active for all rows. B is not zero."""
    lora = LoraConfig(r=RANK, lora_alpha=LORA_ALPHA, target_modules=list(targets), **config)
    model.add_adapter(lora, adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model):
        if name in layer.lora_A:
            for weight in (layer.lora_A[name].weight, layer.lora_B[name].weight):
                weight.data = torch.randn(weight.shape, generator=generator).to(weight) * 0.15


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def delta_of(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The LoRA as differences of whole weights: α/r·B·A, with √r for rsLoRA."""
    result = {}
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and name in layer.lora_A:
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            scale = LORA_ALPHA / (math.sqrt(RANK) if layer.use_rslora[name] else RANK)
            result[f"{path}.weight"] = scale * (up.flatten(1) @ down.flatten(1)).reshape(layer.base_layer.weight.shape)
    return {name: tensor.detach() for name, tensor in result.items()}


def layers_of(family: str) -> tuple[str, ...]:
    """Some that a family's denoiser has, of each kind."""
    return ("to_q", "to_v", "time_embedding.linear_1", "proj", *MORE_LAYERS.get(family, ()))


MORE_LAYERS = {
    "qwen-image": ("img_mlp.net.2", "img_in", "txt_in", "img_mod.1"),
    "z-image": ("feed_forward.w2", "all_x_embedder.2-1", "layers.0.adaLN_modulation.0"),
    "flux2-klein": ("to_qkv_mlp_proj", "linear_in", "x_embedder", "double_stream_modulation_img.linear"),
}


def model_with(family: str, model: nn.Module, weights: Mapping[str, float]) -> nn.Module:
    """A separate plain model without LoRA: the family's weights + Σ weight·delta."""
    plain = denoiser(PIPELINES[family]())
    with torch.no_grad():
        for name, weight in weights.items():
            for parameter, delta in delta_of(model, name).items():
                plain.get_parameter(parameter).add_(weight * delta)
    return plain.requires_grad_(False)


@torch.no_grad()
def two_model_loop(
    pipe: Any,
    positive: nn.Module,
    negative: nn.Module,
    prompt: str | list[str] = "a red fox",
    scale: float = 5.0,
    negative_prompt: str | list[str] | None = None,
    num_images_per_prompt: int = 1,
    guidance_rescale: float = 0.0,
    condition: str = "null",
) -> Tensor:
    """`tests.tiny.sample` of the SD1.5 pipeline by hand; only text encoder and scheduler are the pipeline's."""
    embeds, null = pipe.encode_prompt(prompt, "cpu", num_images_per_prompt, True, negative_prompt)
    x = torch.randn((len(embeds), 4, 8, 8), generator=torch.Generator().manual_seed(1))
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        wanted = positive(x, t, embeds).sample
        unwanted = negative(x, t, embeds if condition == "prompt" else null).sample
        guided = unwanted + scale * (wanted - unwanted)
        if guidance_rescale:
            axes = (1, 2, 3)
            rescaled = guided * (wanted.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
            guided = guidance_rescale * rescaled + (1 - guidance_rescale) * guided
        x = scheduler.step(guided, t, x).prev_sample
    return x


class TwoModels(nn.Module):
    """A denoiser for stock pipelines that runs each branch through a model of its own."""

    def __init__(self, positive: nn.Module, negative: nn.Module, order: str = "negative first") -> None:
        super().__init__()
        self.positive, self.negative, self.order = positive, negative, order
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("positive"), name)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        if self.order == "separate":  # the positive branch runs first
            self.calls += 1
            return (self.positive if self.calls % 2 else self.negative)(*args, **kwargs)
        x = args[0] if args else kwargs["hidden_states"]
        half = len(x) // 2
        models = (self.negative, self.positive) if self.order == "negative first" else (self.positive, self.negative)
        parts = [slice(0, half), slice(half, None)]
        outputs = [
            model(*_rows(args, 2 * half, part), **_rows(kwargs, 2 * half, part))[0]
            for model, part in zip(models, parts, strict=True)
        ]
        return ([*outputs[0], *outputs[1]] if isinstance(x, list) else torch.cat(outputs),)


Ask = Callable[[nn.Module, str], Tensor]
"""(a whole model, "negative" or "positive") → what it says of that branch's rows."""


class ByHand(nn.Module):
    """A denoiser for stock pipelines that run [negative, positive]; the guided prediction is `guided(ask, σ/α)`.

    It is returned for both branches, so that the pipeline's own guidance changes nothing of it.
    """

    def __init__(self, pipe: Any, guided: Callable[[Ask, float], Tensor]) -> None:
        super().__init__()
        self.like, self.guided = denoiser(pipe), guided
        self.clean = pipe.scheduler.alphas_cumprod

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("like"), name)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        half = len(args[0] if args else kwargs["hidden_states"]) // 2
        branches = {"negative": slice(0, half), "positive": slice(half, None)}

        def ask(model: nn.Module, branch: str) -> Tensor:
            return model(*_rows(args, 2 * half, branches[branch]), **_rows(kwargs, 2 * half, branches[branch]))[0]

        clean = float(self.clean[int((args[1] if len(args) > 1 else kwargs["timestep"]).flatten()[0])])
        guided = self.guided(ask, math.sqrt((1 - clean) / clean) if clean else math.inf)
        return (torch.cat([guided, guided]),)


def by_hand(family: str, guided: Callable[[Ask, float], Tensor], prompts: list[str], **call: Any) -> Tensor:
    """`tests.tiny.sample` of a pipeline of its own whose guidance is done so."""
    pipe = PIPELINES[family]()
    setattr(pipe, "unet" if "unet" in pipe.components else "transformer", ByHand(pipe, guided))
    return sample(family, pipe, prompts, **call)


def _rows(value: Any, batch: int, part: slice) -> Any:
    if isinstance(value, Tensor):
        return value[part] if value.ndim and len(value) == batch else value
    if isinstance(value, list):
        return value[part]
    if isinstance(value, dict):
        return {name: _rows(item, batch, part) for name, item in value.items()}
    return tuple(_rows(item, batch, part) for item in value) if isinstance(value, tuple) else value


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Largest difference, in units of the expected values' own size."""
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.1e}"
