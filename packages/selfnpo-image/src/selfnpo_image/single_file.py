"""Single-file checkpoints: Stable Diffusion 1.x's own layout in one .safetensors.

A file has weights only. The configurations of SD1.5 (CompVis and Runway, 2112.10752) are known here, so that no hub is
asked for them; its tokenizer is two files of CLIP's, which come from the hub's cache or from `--model-config`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open

from selfnpo_core.errors import InputError
from selfnpo_core.sources import Source
from selfnpo_image.family import check_file, check_index, check_unet, cross_attention_dim

TOKENIZER = "openai/clip-vit-large-patch14"

_SD15: dict[str, dict[str, Any]] = {
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


def sd15_configs() -> dict[str, dict[str, Any]]:
    """SD1.5's component configurations by their place in a diffusers folder."""
    return json.loads(json.dumps(_SD15))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file; only its header is read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{path} is not a whole safetensors file ({detail}): make or copy it again") from None


@contextmanager
def prepared(source: Source) -> Iterator[dict[str, Any]]:
    """Arguments for `from_single_file` beside the path: a folder of configurations, and a tokenizer if it has none."""
    shapes = tensor_shapes(Path(source.location))
    check_file(shapes, source.name)
    if source.config is not None:
        check_index(_read(source.config / "model_index.json"), str(source.config))
        check_unet(_read(source.config / "unet" / "config.json"), str(source.config))
        yield {"config": str(source.config)}
        return
    width = cross_attention_dim(shapes)
    if width != _SD15["unet/config.json"]["cross_attention_dim"]:
        raise InputError(
            f"model {source.name} is of SD1.5's kind but of another size (text width {width}): give a diffusers "
            "folder of its configurations as --model-config"
        )
    with TemporaryDirectory() as folder:
        for place, config in _configs_for(shapes).items():
            (Path(folder) / place).parent.mkdir(exist_ok=True)
            (Path(folder) / place).write_text(json.dumps(config), encoding="utf-8")
        yield {"config": folder, "tokenizer": _clip_tokenizer(source)}


def _configs_for(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """Fine-tunes mark v-prediction, and zero terminal SNR (2305.08891), by an empty tensor of that name."""
    configs = sd15_configs()
    if "v_pred" in shapes:
        configs["scheduler/scheduler_config.json"]["prediction_type"] = "v_prediction"
    if "ztsnr" in shapes:
        configs["scheduler/scheduler_config.json"] |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
        configs["model_index.json"]["scheduler"] = ["diffusers", "DDIMScheduler"]
    return configs


def _clip_tokenizer(source: Source) -> Any:
    from transformers import CLIPTokenizer

    problem: Exception | None = None
    try:
        tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
        if len(tokenizer) == _SD15["text_encoder/config.json"]["vocab_size"]:  # without files it comes empty
            return tokenizer
    except Exception as error:
        problem = error
    raise InputError(
        f"model {source.name} is a single file, which has no tokenizer, and {TOKENIZER} cannot be had from the hub: "
        "give any diffusers folder of the same size as --model-config (its weights are not read)"
    ) from problem


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): give a diffusers folder") from None
