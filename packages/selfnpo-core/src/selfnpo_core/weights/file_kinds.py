"""What a file of weights is that is no adapter, by the names of its tensors, and what to do with it."""

import re
from collections.abc import Iterable

_WHOLE = "give it as --model, or, tuned from the model, as --preference"
_KINDS = (
    (r"edm_(mean|std|vpred)|^edm", "is an EDM checkpoint, whose parametrisation is not supported", "use another"),
    (r"^conditioner\.embedders\.1\.|^cond_stage_model\.|^first_stage_model\.", "is a whole checkpoint", _WHOLE),
    (r"^(control_model\.|controlnet_|input_hint_block|zero_convs)|lllite", "is a ControlNet", "leave it out"),
    (r"^(image_proj|ip_adapter)", "is an IP-Adapter", "leave it out"),
    (r"motion_modules|temporal_transformer", "is a motion module", "leave it out"),
    (r"emb_params|string_to_(param|token)|^clip_[lg]$|^<.*>$", "is a textual inversion", "give a LoRA"),
    (
        r"^((model\.)?diffusion_model\.|(unet\.|transformer\.)?"
        r"(down_blocks|mid_block|conv_in|transformer_blocks|joint_blocks|double_blocks|input_blocks|time_embed|blocks)\.)",
        "is a denoiser alone, in whole weights",
        "give its diffusers folder, with config.json, as --preference",
    ),
    (r"^(encoder|decoder)\.(conv_in|down|mid|up)", "is an autoencoder", "leave it out"),
    (r"^(text_model|encoder\.block|shared\.|text_encoder)", "is a text encoder", "leave it out"),
)


def kind_of(names: Iterable[str]) -> str:
    """The rest of a message that begins with the file's name."""
    every = list(names)
    refiner = any(name.startswith("conditioner.embedders.0.model.") for name in every)
    if refiner and not any(name.startswith("conditioner.embedders.1.") for name in every):
        return "is an SDXL refiner, no LoRA: it is of no use here, give a LoRA of the base"
    for pattern, what, advice in _KINDS:
        if any(re.search(pattern, name) for name in every):
            return f"{what}, no LoRA: {advice}"
    first = f" ('{every[0]}', …)" if every else ", as it is empty"
    return f"holds neither a LoRA nor an offset{first}: give the file that training wrote, or a LoRA"


def is_whole(names: Iterable[str]) -> bool:
    """Whether a file has a denoiser and more: a checkpoint that could be given as --model."""
    every = list(names)
    return any(n.startswith("model.diffusion_model.") for n in every) and any(
        n.startswith(("conditioner.", "cond_stage_model.", "first_stage_model.")) for n in every
    )
