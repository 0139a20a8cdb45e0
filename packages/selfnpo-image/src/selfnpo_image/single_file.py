"""Single-file checkpoints: one .safetensors in the layout of the family's first release.

A file has weights only. The configurations of SD1.5 (CompVis and Runway, 2112.10752) and SDXL (Stability AI,
2307.01952) are known here, so that no hub is asked for them; their tokenizers are CLIP's, which come from the hub's
cache or from `--model-config`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from selfnpo_core.errors import InputError
from selfnpo_core.models.sources import Source

if TYPE_CHECKING:
    from selfnpo_image.families import Kind, Shapes

_STEM = "model.diffusion_model.input_blocks.0.0.weight"
Configs = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a family's single files are known, and what they lack.

    text: how the names of its text encoder begin. cross_attention: a weight whose width is that of the text.
    configs: by place in a diffusers folder. tokenizers: component → (place on the hub, padding token or None).
    """

    text: str
    cross_attention: str
    configs: Mapping[str, Mapping[str, Any]]
    tokenizers: Mapping[str, tuple[str, str | None]]

    def owns(self, shapes: Shapes) -> bool:
        return _STEM in shapes and any(name.startswith(self.text) for name in shapes)

    @property
    def text_width(self) -> int:
        return int(self.configs["unet/config.json"]["cross_attention_dim"])


_SD15: Configs = {
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "latent_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "scaling_factor": 0.18215,
    },
    "text_encoder/config.json": {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "projection_dim": 768,
        "vocab_size": 49408,
        "hidden_act": "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "PNDMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    },
}

_SDXL: Configs = {
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae/config.json": {
        **_SD15["vae/config.json"],
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    },
    "text_encoder/config.json": _SD15["text_encoder/config.json"],
    "text_encoder_2/config.json": {
        **_SD15["text_encoder/config.json"],
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    },
    "model_index.json": {
        "_class_name": "StableDiffusionXLPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "force_zeros_for_empty_prompt": True,
    },
}

_CLIP_L = "openai/clip-vit-large-patch14"
SD15 = Layout(
    text="cond_stage_model.transformer.",
    cross_attention="model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    configs=_SD15,
    tokenizers={"tokenizer": (_CLIP_L, None)},
)
SDXL = Layout(
    text="conditioner.embedders.1.model.",
    cross_attention="model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    configs=_SDXL,
    tokenizers={"tokenizer": (_CLIP_L, None), "tokenizer_2": ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "!")},
)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file; only its header is read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{path} is not a whole safetensors file ({detail}): make or copy it again") from None


@contextmanager
def prepared(source: Source, kind: Kind) -> Iterator[dict[str, Any]]:
    """Arguments for `from_single_file` beside the path: a folder of configurations, and tokenizers if it has none."""
    from selfnpo_image.families import check_network, kind_of_index, read_config

    layout = kind.layout
    assert layout is not None
    shapes = tensor_shapes(Path(source.location))
    if shapes[_STEM][1] != 4:
        raise kind.wrong(source.name, f"an inpainting or editing model ({shapes[_STEM][1]} input channels)")
    if source.config is not None:
        name = str(source.config)
        found = kind_of_index(read_config(source.config / "model_index.json", name), name)
        if found.name != kind.name:
            raise kind.wrong(name, f"an {found.title} folder")
        check_network(kind, read_config(source.config / "unet" / "config.json", name), name)
        yield {"config": str(source.config)}
        return
    width = shapes[layout.cross_attention][1] if layout.cross_attention in shapes else None
    if width != layout.text_width:
        raise InputError(
            f"model {source.name} is of {kind.title}'s kind but of another size (text width {width}): give a diffusers "
            "folder of its configurations as --model-config"
        )
    with TemporaryDirectory() as folder:
        for place, config in configs_for(layout, shapes).items():
            (Path(folder) / place).parent.mkdir(exist_ok=True)
            (Path(folder) / place).write_text(json.dumps(config), encoding="utf-8")
        yield {"config": folder, **{part: _clip_tokenizer(source, *at) for part, at in layout.tokenizers.items()}}


def configs_for(layout: Layout, shapes: Shapes) -> Configs:
    """Fine-tunes mark v-prediction, and zero terminal SNR (2305.08891), by an empty tensor of that name."""
    configs: Configs = copy.deepcopy(dict(layout.configs))  # type: ignore[arg-type]
    if "v_pred" in shapes:
        configs["scheduler/scheduler_config.json"]["prediction_type"] = "v_prediction"
    if "ztsnr" in shapes:
        configs["scheduler/scheduler_config.json"] |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
        configs["model_index.json"]["scheduler"] = ["diffusers", "DDIMScheduler"]
    return configs


def _clip_tokenizer(source: Source, place: str, padding: str | None) -> Any:
    from transformers import CLIPTokenizer

    problem: Exception | None = None
    try:
        tokenizer = CLIPTokenizer.from_pretrained(place, **({} if padding is None else {"pad_token": padding}))
        if len(tokenizer) == _SD15["text_encoder/config.json"]["vocab_size"]:  # without files it comes empty
            return tokenizer
    except Exception as error:
        problem = error
    raise InputError(
        f"model {source.name} is a single file, which has no tokenizer, and {place} cannot be had from the hub: "
        "give any diffusers folder of the same size as --model-config (its weights are not read)"
    ) from problem
