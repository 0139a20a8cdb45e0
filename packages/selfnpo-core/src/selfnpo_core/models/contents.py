"""What a file or a folder is that is no base model, in words that say where it may be of use."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from selfnpo_core.system.files import read_json

LORA = "a LoRA (negative weights go to --npo, others to --preference)"
_LORA = (
    r"lora_(A|B|up|down|unet|te|transformer|magnitude)|^lycoris_|\.(hada_w|lokr_w|oft_|dora_scale|boft)"
    r"|_lora\.(up|down)\.|^bundle_emb"
)
_FILES: Mapping[str, str] = {
    LORA: _LORA,
    "a textual inversion, which is no model": r"emb_params|string_to_(param|token)|^clip_[lg]$",
    "a ControlNet": r"^(control_model\.|controlnet_|input_hint_block|zero_convs)",
    "an IP-Adapter, which is no model": r"^(image_proj|ip_adapter)",
    "a motion module, which is no model": r"motion_modules\.|temporal_transformer",
    "a FLUX checkpoint": r"^(model\.diffusion_model\.)?double_blocks\.",
    "a video or transformer model of SD3's kind (as a diffusers folder it can be used)": (
        r"^model\.diffusion_model\.joint_blocks\.|^joint_blocks\."
    ),
    "a Stable Diffusion 2 checkpoint (as a diffusers folder it can be used)": r"^cond_stage_model\.model\.",
    "the SDXL refiner, which only finishes another model's pictures": r"^conditioner\.embedders\.0\.model\.",
    "a UNet without its text encoders (give the whole checkpoint)": (
        r"^(model\.)?diffusion_model\.(input|middle|output)_blocks?\.|^input_blocks\."
    ),
    "a bare UNet (give the whole diffusers folder)": r"^(unet\.)?(down_blocks|conv_in)\.",
    "a bare VAE (give the whole checkpoint)": (
        r"^(first_stage_model\.)?(encoder\.(conv_in|down|mid)|decoder\.|quant_conv)"
    ),
    "a bare text encoder (give the whole model)": r"^(text_model\.|encoder\.block\.|shared\.)",
    "a video or transformer model": (
        r"^(model\.diffusion_model\.|transformer\.)?(blocks|transformer_blocks|patch_embed|patch_embedding)\."
    ),
}
"""What a file is if one of its names is like this; asked in this order."""
_LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


def file_kind(names: Iterable[str]) -> str | None:
    """By the names of the tensors in a safetensors file; `None` for one of unknown contents."""
    every = list(names)
    for what, pattern in _FILES.items():
        if any(re.search(pattern, name) for name in every):
            return what
    return None


def folder_kind(folder: Path) -> str | None:
    """Of a folder without model_index.json: what it is and what to give; `None` where that is not known."""
    for place in (folder, folder / "npo"):
        if any((place / file).is_file() for file in _LORA_FILES) or (place / "npo_config.json").is_file():
            return f"it holds {LORA}"
    models = sorted(path.parent for path in folder.glob("*/model_index.json"))
    models += sorted(path.parent for path in folder.glob("snapshots/*/model_index.json"))
    if models:
        return f"but {models[0].relative_to(folder)} in it has: give that"
    if (name := _class_name(folder / "config.json")) is not None:
        return f"it is a {name} alone: give the whole diffusers folder that it is a part of"
    files = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in (".safetensors", ".gguf"))
    if files:
        return f"but files: if one of them is a whole checkpoint give that, such as {folder / files[0]}"
    return None


def _class_name(config: Path) -> str | None:
    try:
        values = read_json(config)
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    names = values.get("_class_name"), *(values.get("architectures") or [])
    return next((name for name in names if isinstance(name, str)), None)
