"""Is this checkpoint of the SD1.5 family? Asked of configurations and of the names in a file, before weights are read.

The family is `StableDiffusionPipeline`: one CLIP text encoder, a `UNet2DConditionModel` on 4 latent channels without
added conditions, epsilon or v-prediction.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError

PIPELINE = "StableDiffusionPipeline"
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

_OTHER_FILES = {
    "an SDXL checkpoint": ("conditioner.embedders.",),
    "an SD3 checkpoint": ("model.diffusion_model.joint_blocks.", "joint_blocks."),
    "a FLUX checkpoint": ("model.diffusion_model.double_blocks.", "double_blocks."),
    "a Stable Diffusion 2 checkpoint (as a diffusers folder it can be used)": ("cond_stage_model.model.",),
    "a ControlNet": ("control_model.", "controlnet_"),
    "a LoRA (negative weights go to --npo)": ("lora_unet_", "lora_te", "unet.", "text_encoder.", "transformer."),
    "a bare UNet (give the whole diffusers folder)": ("down_blocks.", "conv_in."),
    "a bare VAE (give the whole checkpoint)": ("encoder.", "decoder.", "quant_conv."),
    "a video or transformer model": ("blocks.", "transformer_blocks.", "patch_embed.", "patch_embedding."),
}
"""What a file is if a name in it begins so; asked in this order, of files that lack SD1.5's own names."""


def check_folder(folder: Path, name: str) -> None:
    """Raise `InputError` unless a diffusers folder is of the family and has its weights as safetensors."""
    check_index(_read(folder / "model_index.json", name), name)
    check_unet(_read(folder / "unet" / "config.json", name), name)
    for part in ("unet", "vae", "text_encoder"):
        if not any((folder / part).glob("*.safetensors")):
            pickled = any(p.suffix in (".bin", ".pt", ".pth", ".ckpt") for p in (folder / part).glob("*"))
            problem = "only pickled weights, which can run code when loaded" if pickled else "no weights"
            raise InputError(f"model {name} has {problem} in {part}: get it as safetensors")


def check_index(index: Mapping[str, Any], name: str) -> None:
    """model_index.json names the pipeline's class."""
    found = index.get("_class_name")
    if found != PIPELINE:
        raise _wrong(name, f"a {found}" if found else "no diffusers pipeline")


def check_unet(config: Mapping[str, Any], name: str) -> None:
    """unet/config.json tells inpainting, SDXL-like and distilled networks from ours."""
    if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise _wrong(name, f"built on a {config['_class_name']}")
    if config.get("in_channels", 4) != 4:
        raise _wrong(name, f"an inpainting or editing model ({config['in_channels']} input channels)")
    for key in ("addition_embed_type", "class_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type"):
        if config.get(key):
            raise _wrong(name, f"a UNet with {key} {config[key]}")


def check_scheduler(config: Mapping[str, Any], name: str) -> str:
    """The prediction type, if it is one of the family's."""
    kind = str(config.get("prediction_type", "epsilon"))
    if kind not in PREDICTION_TYPES:
        raise InputError(f"model {name} predicts '{kind}': use a model that predicts epsilon, v_prediction or sample")
    return kind


def check_file(shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """`shapes`: of the tensors in a single-file checkpoint, by name."""
    stem = "model.diffusion_model.input_blocks.0.0.weight"
    text = "cond_stage_model.transformer."
    if stem in shapes and any(key.startswith(text) for key in shapes):
        if shapes[stem][1] != 4:
            raise _wrong(name, f"an inpainting or editing model ({shapes[stem][1]} input channels)")
        return
    for what, beginnings in _OTHER_FILES.items():
        if any(key.startswith(beginnings) for key in shapes):
            raise _wrong(name, what)
    raise _wrong(name, "a file of unknown contents")


def cross_attention_dim(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Width of the text that a single-file checkpoint's UNet looks at: 768 in SD1.5."""
    return shapes[_CROSS_ATTENTION][1] if _CROSS_ATTENTION in shapes else None


def _wrong(name: str, what: str) -> InputError:
    return InputError(f"model {name} is {what}, not of the SD1.5 family: give one that is, such as sd15 or dreamshaper")


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        part = f"{path.parent.name}/{path.name}" if path.name == "config.json" else path.name
        raise InputError(f"model {name} has no {part}: give a diffusers folder of the SD1.5 family") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): get the model again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: get the model again")
    return value
