"""Where in a clip a window of latent frames lies: CogVideoX's rotary and sine-cosine positions, at any place.

CogVideoX (2408.06072) adds sine-cosine positions of (frame, row, column) to its tokens (2b), or turns queries and keys
by them (5b, 1.5). diffusers computes both for clips that begin at frame 0. A window of frames first … first + n − 1 has
the positions of those frames in the whole clip: frame k is at position k whatever the clip's length.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from selfnpo_core.system import private

Rotary = tuple[Tensor, Tensor]
"""cos and sin, each (tokens, attention_head_dim)."""


class TimeAxis(ABC):
    """The frames of clips, as a family's network takes them."""

    dim: int
    """Of frames, in the network's latents (B, …). Ours are (B, F, C, h, w)."""

    @abstractmethod
    def step(self, config: Any) -> int:
        """Latent frames in a patch, by the network's configuration."""

    @abstractmethod
    def window(
        self, network: Any, given: Mapping[str, Any], whole: int, part: slice, first: int
    ) -> AbstractContextManager[dict[str, Any]]:
        """What the network is to be given in place of `given`, of frames `part` of a clip of `whole`, but the latents.

        Within the block it takes them to begin at latent frame `first`.
        """

    def ours(self, latents: Tensor) -> Tensor:
        """(B, F, C, h, w) of the network's; and the other way round."""
        return latents.transpose(1, self.dim)


class CogVideoXTime(TimeAxis):
    """Of (B, F, C, h, w); rotary positions come with the call, sine-cosine ones are the network's own."""

    dim = 1

    def step(self, config: Any) -> int:
        return config.patch_size_t or 1

    @contextmanager
    def window(
        self, network: Any, given: Mapping[str, Any], whole: int, part: slice, first: int
    ) -> Iterator[dict[str, Any]]:
        own = dict(given)
        if own.get("image_rotary_emb") is not None:
            count = part.stop - part.start
            tables = own["image_rotary_emb"]
            own["image_rotary_emb"] = tuple(_frames_of(table, whole, first, count) for table in tables)
        with window_at(network, first):
            yield own


def _frames_of(table: Tensor, frames: int, first: int, count: int) -> Tensor:
    """Of rotary positions (tokens, D) of a clip, those of `count` latent frames from `first` on."""
    tokens = table.shape[0]
    return table[tokens * first // frames : tokens * (first + count) // frames]


COGVIDEOX_TIME = CogVideoXTime()


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
