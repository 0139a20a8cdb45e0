"""Chunk by chunk equals all at once, to the bit."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from tests.tiny import cogvideox

from selfnpo_video.streaming import chunks, decode_stream, encode_stream


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLCogVideoX:
    return cogvideox().vae


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8])
@torch.no_grad()
def test_decoding_by_chunks_is_bit_equal(vae, frames):
    latents = torch.randn((2, frames, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    whole = vae.decode(1 / vae.config.scaling_factor * latents.permute(0, 2, 1, 3, 4)).sample
    pieces = list(decode_stream(vae, latents))
    assert torch.equal(torch.cat(pieces, dim=2), whole)
    assert len(pieces) == max(1, frames // 2)


@pytest.mark.parametrize(("frames", "pieces"), [(1, [1]), (9, [3, 3, 3]), (13, [13]), (17, [1, 9, 7]), (33, [10, 23])])
@torch.no_grad()
def test_encoding_by_chunks_is_bit_equal(vae, frames, pieces):
    video = torch.rand((1, 3, frames, 16, 16), generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = vae.encode(video).latent_dist.mean.permute(0, 2, 1, 3, 4) * vae.config.scaling_factor
    assert torch.equal(encode_stream(vae, video.split(pieces, dim=2), frames), whole)


def test_chunks_are_those_of_diffusers():
    assert chunks(7, 2) == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert chunks(1, 2) == [slice(0, 1)]
    assert chunks(17, 8) == [slice(0, 9), slice(9, 17)]
