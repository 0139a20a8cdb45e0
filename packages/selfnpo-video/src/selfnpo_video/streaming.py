"""Decode and encode chunk by chunk, frames coming and going as they are ready: peak memory does not grow with length.

Each family's VAE has its own form of `decode_stream`, registered where the family is. CogVideoX's is causal in time and
carries a cache of its convolutions from chunk to chunk (2408.06072, section 2.1); diffusers keeps that cache inside one
call. Here it is kept between calls, so the result is bit-equal to the whole call's. The chunks must be diffusers' own:
GroupNorm looks at all frames of a chunk, so others would change the output.
"""

from collections.abc import Iterable, Iterator
from functools import singledispatch
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from selfnpo_core.errors import InputError


@singledispatch
def decode_stream(vae: Any, latents: Tensor) -> Iterator[Tensor]:
    """Latents (B, F, C, h, w), as they are denoised → chunks of frames (B, 3, f, H, W) in [−1, 1], in order.

    Costs what `vae.decode` costs; memory is that of one chunk and of the convolutions' cache. With tiling on, the whole
    clip is decoded at once, tile by tile.
    """
    raise NotImplementedError(f"no family here has the VAE {type(vae).__name__}")


@decode_stream.register(AutoencoderKLCogVideoX)
def _decode_cogvideox(vae: AutoencoderKLCogVideoX, latents: Tensor) -> Iterator[Tensor]:
    """A chunk is two latent frames; the first is three, where F is odd."""
    if vae.use_tiling:
        yield vae.decode(1 / vae.config.scaling_factor * latents.permute(0, 2, 1, 3, 4)).sample
        return
    z = 1 / vae.config.scaling_factor * latents.permute(0, 2, 1, 3, 4)  # as the pipeline does, to the bit
    cache: dict[str, Tensor] | None = None
    for part in chunks(z.shape[2], vae.num_latent_frames_batch_size):
        some = z[:, :, part]
        if vae.post_quant_conv is not None:
            some = vae.post_quant_conv(some)
        frames, cache = vae.decoder(some, conv_cache=cache)
        yield frames


def encode_stream(vae: AutoencoderKLCogVideoX, frames: Iterable[Tensor], count: int) -> Tensor:
    """Frames (B, 3, f, H, W) in [−1, 1], in pieces of any length, `count` in all → scaled latents (B, F, C, h, w).

    The mean of the encoder's distribution. Holds one chunk of eight frames at a time, the first up to fifteen.
    """
    cache: dict[str, Tensor] | None = None
    moments = []
    sizes = [part.stop - part.start for part in chunks(count, vae.num_sample_frames_batch_size)]
    for piece in _regrouped(frames, sizes):
        some, cache = vae.encoder(piece, conv_cache=cache)
        moments.append(some if vae.quant_conv is None else vae.quant_conv(some))
    mean = torch.cat(moments, dim=2).chunk(2, dim=1)[0]
    return mean.permute(0, 2, 1, 3, 4) * vae.config.scaling_factor


def chunks(count: int, size: int) -> list[slice]:
    """diffusers' chunks of `count` frames: `size` each, what is left over being added to the first."""
    number = max(count // size, 1)
    rest = count % size if count >= size else 0
    ends = [min(size * (k + 1) + rest, count) for k in range(number)]
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _regrouped(pieces: Iterable[Tensor], sizes: list[int]) -> Iterator[Tensor]:
    """The same frames in pieces of these sizes."""
    held: list[Tensor] = []
    source = iter(pieces)
    for size in sizes:
        while sum(piece.shape[2] for piece in held) < size:
            piece = next(source, None)
            if piece is None:
                raise InputError(f"the clip has fewer frames than the {sum(sizes)} that were announced")
            held.append(piece)
        frames = torch.cat(held, dim=2)
        yield frames[:, :, :size]
        held = [frames[:, :, size:]]
