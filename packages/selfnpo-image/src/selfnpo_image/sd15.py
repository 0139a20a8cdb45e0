"""The SD1.5 family: loading, embedding, prediction and pictures for `selfnpo_core.training`.

A UNet2DConditionModel on latents of an AutoencoderKL, under the last hidden states of one CLIP text encoder
(2112.10752). Stable Diffusion 2, of the same classes with v-prediction, works too. Latents: (B, 4, h, w), a picture's
height and width divided by the autoencoder's factor; embeddings: (B, tokens, width).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from selfnpo_core.adapters import NegativeAdapters, NegativeDelta
from selfnpo_core.errors import InputError
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.training.backbone import Negative
from selfnpo_core.training.hashing import weights_hash
from selfnpo_image.models import Location, locate

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

FAMILY = "sd15"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_TARGETS: Mapping[str, Sequence[str]] = {
    "attention": ATTENTION,
    "all": [
        *ATTENTION,
        *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "time_emb_proj"),
    ],
}


def load_pipeline(
    model: str, *, dtype: torch.dtype = torch.float32, config: str | Path | None = None, **parts: Any
) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline of the SD1.5 family from a known name, folder, .safetensors file or hub id.

    config: for a single file, a local diffusers folder with the family's configuration and tokenizer, where the hub
    cannot be reached. parts: components to use instead of loading them (`unet=…`).
    Raises `InputError` for another family, for pickled weights, and for what cannot be found.
    """
    place = locate(model)
    common = {"torch_dtype": dtype, "safety_checker": None, "requires_safety_checker": False, **parts}
    if place.file is not None:
        return _from_file(place.file, config, common)
    source = str(place.folder or place.hub_id)
    _check_family(place, _pipeline_config(source))
    if place.folder is not None:
        _check_weights(place.folder)
    try:
        pipe = StableDiffusionPipeline.from_pretrained(source, use_safetensors=True, feature_extractor=None, **common)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot load {model}: {_short(error)}") from None
    _check_unet(pipe, model)
    return pipe


def _pipeline_config(source: str) -> dict[str, Any]:
    """model_index.json, from disk or hub."""
    try:
        return dict(StableDiffusionPipeline.load_config(source))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot find the model {source}: check its name and the network, or give a local folder ({_short(error)})"
        ) from None


def _check_family(place: Location, index: Mapping[str, Any]) -> None:
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise InputError(f"{place.name} is a {kind}, not of the SD1.5 family: give a StableDiffusionPipeline")


def _check_weights(folder: Path) -> None:
    """Every part with weights must have them as safetensors; and the UNet must not be another family's."""
    for part in ("unet", "vae", "text_encoder"):
        if not any((folder / part).glob("*.safetensors")):
            if any((folder / part).glob("*.bin")):
                raise InputError(f"{folder / part} has pickled weights only: save the model as safetensors first")
            raise InputError(f"{folder / part} has no .safetensors weights: the model's folder is not whole")
    unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    if unet.get("addition_embed_type"):
        raise InputError(f"{folder} holds an SDXL UNet, not one of the SD1.5 family")


def _check_unet(pipe: StableDiffusionPipeline, model: str) -> None:
    config = pipe.unet.config
    if config.in_channels != pipe.vae.config.latent_channels:
        raise InputError(
            f"{model} takes {config.in_channels} channels, as inpainting models do: give a text-to-image one"
        )
    width = pipe.text_encoder.config.hidden_size if pipe.text_encoder is not None else config.cross_attention_dim
    if config.cross_attention_dim != width:
        raise InputError(
            f"{model}: the UNet reads embeddings of {config.cross_attention_dim}, the text encoder gives {width}"
        )


def _from_file(file: Path, config: str | Path | None, common: dict[str, Any]) -> StableDiffusionPipeline:
    try:
        with safe_open(file, framework="pt") as stored:
            keys = set(stored.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is no whole .safetensors file: {_short(error)}") from None
    if "model.diffusion_model.input_blocks.0.0.weight" not in keys or not any(
        key.startswith("cond_stage_model.") for key in keys
    ):
        raise InputError(f"{file} is not an SD1.5-family checkpoint: {_looks_like(keys)}")
    if config is not None:
        common["config"] = str(config)
        common["local_files_only"] = True
    try:
        return StableDiffusionPipeline.from_single_file(str(file), feature_extractor=None, **common)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"cannot load {file}: {_short(error)}; without network, pass --model-config with a local SD1.5 folder"
        ) from None


def _looks_like(keys: set[str]) -> str:
    signs = {
        "conditioner.embedders": "it looks like SDXL",
        "joint_blocks": "it looks like SD3",
        "double_blocks": "it looks like Flux",
        "lora": "it looks like a LoRA, which --npo takes",
    }
    for sign, guess in signs.items():
        if any(sign in key for key in keys):
            return guess
    return "its keys are those of no model known here"


def _short(error: Exception) -> str:
    """The first sentence of an error, on one line."""
    return " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__


class SD15:
    """A `selfnpo_core.training.Backbone` for SD1.5-family models."""

    family = FAMILY
    lora_targets = LORA_TARGETS

    def __init__(self, model: str, *, dtype: torch.dtype = torch.float32, config: str | Path | None = None) -> None:
        self.name, self._dtype, self._config = model, dtype, config
        pipe = load_pipeline(model, dtype=dtype, config=config)
        self.denoiser: nn.Module = pipe.unet
        self.base_hash = weights_hash(pipe.unet)
        self.schedule = NoiseSchedule.from_scheduler(pipe.scheduler)
        self.prediction_type = str(pipe.scheduler.config.prediction_type)
        size = pipe.unet.config.sample_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        self.latent_shape = (pipe.unet.config.in_channels, height, width)
        self.bytes_per_prompt = pipe.tokenizer.model_max_length * pipe.unet.config.cross_attention_dim * dtype.itemsize
        self._pipe: StableDiffusionPipeline | None = pipe
        self._table = torch.empty(0)

    def embed(self, prompts: Sequence[str], batch: int = 32) -> None:
        """Fill the table: (len(prompts) + 1, tokens, width), the null prompt last, so that index −1 finds it.

        Text encoder and VAE are let go of afterwards; `draw_samples` loads them again for its own duration.
        """
        pipe = self._whole_pipeline()
        device = self._device
        pipe.text_encoder.to(device)
        texts, rows = [*prompts, ""], []
        for first in tqdm(
            range(0, len(texts), batch), desc="embed prompts", unit="batch", disable=len(texts) < 4 * batch
        ):
            with torch.no_grad():
                some, _ = pipe.encode_prompt(texts[first : first + batch], device, 1, False)
            rows.append(some.to("cpu", self._dtype))
        self._table = torch.cat(rows)
        self._pipe = None

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """The UNet's output, (B, 4, h, w), for x_t: (B, 4, h, w), t: (B,), prompt: (B,) indices, −1 for null."""
        dtype = next(self.denoiser.parameters()).dtype
        context = self._table[prompt.to(self._table.device)].to(x_t.device, dtype)
        return self.denoiser(x_t.to(dtype), t, encoder_hidden_states=context).sample

    def use_attention(self, name: str) -> None:
        if name in ("auto", "sdpa"):
            return
        if name != "xformers":
            raise InputError(f"attention '{name}' is unknown for SD1.5: use auto, sdpa or xformers")
        try:
            self.denoiser.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError, RuntimeError) as error:
            raise InputError(f"xformers cannot run here ({_short(error)}): use attention auto") from None

    def draw_samples(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: Negative,
    ) -> Sequence[Image]:
        """Pictures with the base weights, or with `negative` on the negative branch. Seeds: one a picture."""
        pipe = self._whole_pipeline().to(self._device)
        pipe.set_progress_bar_config(disable=True)
        with attach_negative(pipe, negative):
            pictures = pipe(
                list(prompts),
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            ).images
        self._pipe = None
        return pictures

    def save_lora(self, directory: Path, adapter: str) -> None:
        """Raw PEFT keys with the LoRA's metadata: keeps every layer, and α where it differs from the rank."""
        StableDiffusionPipeline.save_lora_weights(
            directory,
            unet_lora_layers={
                name: tensor.detach().float().cpu().contiguous()
                for name, tensor in get_peft_model_state_dict(self.denoiser, adapter_name=adapter).items()
            },
            unet_lora_adapter_metadata=self.denoiser.peft_config[adapter].to_dict(),
        )

    @property
    def _device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def _whole_pipeline(self) -> StableDiffusionPipeline:
        """The stock pipeline around the denoiser as it is now; its other parts are loaded if they were let go of."""
        unet = getattr(self.denoiser, "module", self.denoiser)
        if self._pipe is None:
            return load_pipeline(self.name, dtype=self._dtype, config=self._config, unet=unet)
        self._pipe.unet = unet
        return self._pipe


def attach_negative(pipe: StableDiffusionPipeline, negative: Negative) -> AbstractContextManager[Any]:
    """A context in which the negative branch uses an adapter, by name, or a full-weight offset, or nothing."""
    if negative is None:
        return nullcontext()
    if isinstance(negative, str):
        return NegativeAdapters.attach(pipe, {negative: 1.0})
    return NegativeDelta.attach(pipe, negative)
