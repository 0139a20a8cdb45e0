"""Where in a clip a window of latent frames lies: CogVideoX's rotary and sine-cosine positions, at any place.

CogVideoX (2408.06072) adds sine-cosine positions of (frame, row, column) to its tokens (2b), or turns queries and keys
by them (5b, 1.5). diffusers computes both for clips that begin at frame 0. A window of frames first … first + n − 1 has
the positions of those frames in the whole clip: frame k is at position k whatever the clip's length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from selfnpo_core.system import private

Rotary = tuple[Tensor, Tensor]
"""cos and sin, each (tokens, attention_head_dim)."""


def rotary_positions(
    transformer: CogVideoXTransformer3DModel, frames: int, height: int, width: int, *, first: int = 0
) -> Rotary | None:
    """For latents (B, frames, C, height, width) that begin at latent frame `first`; None where the model has none.

    With temporal patches (1.5) `frames` and `first` are multiples of `patch_size_t`.
    """
    config = transformer.config
    if not config.use_rotary_positional_embeddings:
        return None
    p, steps = config.patch_size, config.patch_size_t or 1
    rows, columns = height // p, width // p
    begin, count = first // steps, (frames + steps - 1) // steps
    if config.patch_size_t is None:
        base = (config.sample_width // p, config.sample_height // p)
        crops = get_resize_crop_region_for_grid((rows, columns), *base)
        kind: dict[str, Any] = {"crops_coords": crops}
    else:
        largest = (config.sample_height // p, config.sample_width // p)
        kind = {"crops_coords": None, "grid_type": "slice", "max_size": largest}
    cos, sin = get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim,
        grid_size=(rows, columns),
        temporal_size=begin + count,
        **kind,
    )
    skipped = begin * rows * columns
    return cos[skipped:], sin[skipped:]


@contextmanager
def window_at(transformer: CogVideoXTransformer3DModel, first: int) -> Iterator[None]:
    """Within the block, sine-cosine positions are those of a window that begins at latent frame `first`."""
    embed = transformer.patch_embed
    if first == 0 or not (embed.use_positional_embeddings or embed.use_learned_positional_embeddings):
        yield
        return

    def shift(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        frames, _, height, width = args[1].shape[1:]
        here, there = (_sincos(embed, n, height, width, output.device) for n in (frames, first + frames))
        offset = there[:, -here.shape[1] + embed.max_text_seq_length :] - here[:, embed.max_text_seq_length :]
        text = output.shape[1] - offset.shape[1]
        return torch.cat([output[:, :text], output[:, text:] + offset.to(output.dtype)], dim=1)

    handle = embed.register_forward_hook(shift)
    try:
        yield
    finally:
        handle.remove()


def _sincos(embed: Any, frames: int, height: int, width: int, device: torch.device) -> Tensor:
    pixels = (frames - 1) * embed.temporal_compression_ratio + 1
    return private.position_table(embed, height, width, pixels, device)
