"""What SD1.5 and SDXL share: the UNet of Stable Diffusion."""

from collections.abc import Mapping, Sequence
from typing import Any

from selfnpo_image.kinds import Kind

CLIP_L = "openai/clip-vit-large-patch14"
"""The text encoder of the first release, by its place on the hub."""

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"]
UNET_TARGETS = {
    "attention": _ATTENTION,
    "all": [*_ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", *_CONVOLUTIONS],
}
"""Layers with a LoRA."""


def check_unet(kind: Kind, config: Mapping[str, Any], name: str, conditions: Sequence[str]) -> None:
    """A UNet on 4 latent channels that takes none of these added conditions."""
    if config.get("in_channels", 4) != 4:
        raise kind.wrong(name, f"an inpainting or editing model ({config['in_channels']} input channels)")
    for key in conditions:
        if config.get(key):
            raise kind.wrong(name, f"a UNet with {key} {config[key]}")


def halvings(config: Any) -> int:
    """A UNet halves latents level by level."""
    return int(2 ** (len(config.block_out_channels) - 1))


def first_width(config: Mapping[str, Any]) -> int | None:
    """Channels of the first level, of which the others are multiples."""
    widths = config.get("block_out_channels")
    if not isinstance(widths, list | tuple) or not widths or not isinstance(widths[0], int):
        return None
    return widths[0]
