"""The autoencoder: AutoencoderKLCogVideoX, (9, 32, 32) × 3 → (3, 8, 8) × 16 latents.

As CogVideoX's it makes four frames one and gives 16 channels; a side it makes a quarter, not an eighth.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from selfnpo_core.worlds.building import load, save, train_averaged
from selfnpo_video.demo import world
from selfnpo_video.demo.build.oracle import real_batch


def build() -> AutoencoderKLCogVideoX:
    """Few channels, so few groups: with one channel a group, normalising would take a picture's tones away."""
    channels = (16, 32, 64)
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * len(channels),
        up_block_types=("CogVideoXUpBlock3D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=1,
        sample_height=world.SIDE,
        sample_width=world.SIDE,
    )


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 and squared error, L1 of the differences along each side for the edges, and of means of 8×8 for the tones."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    tones = F.avg_pool3d(error, (1, 8, 8)).abs().mean()
    return error.abs().mean() + 2.0 * error.square().mean() + 0.5 * edges + tones


def train(
    path: Path,
    *,
    pictures: int = 1600,
    clips: int = 1500,
    decoding: int = 1000,
    batch: int = 4,
    lr: float = 2e-3,
    seed: int = 2,
) -> AutoencoderKLCogVideoX:
    """Train the autoencoder; `with_scale` gives it its scaling factor.

    First for so many steps on single frames, three for each clip of a batch: the frames of a clip tell little more
    than one of them; then on whole clips; then the decoder alone. An interrupted training goes on from the state that
    it keeps beside `path`.
    """
    torch.manual_seed(seed)
    vae = build()
    if path.exists():
        load(vae, path)
        return with_scale(vae)

    def loss_of(x: Tensor, generator: torch.Generator, *, encoder: bool = True) -> Tensor:
        with torch.set_grad_enabled(encoder):
            posterior = vae.encode(x * 2 - 1).latent_dist
        output = vae.decode(posterior.sample(generator)).sample
        return reconstruction_loss(output, x * 2 - 1) + 1e-6 * posterior.kl().mean()

    def of_pictures(generator: torch.Generator) -> Tensor:
        pictures, _ = world.draw_stills(3 * batch, generator)
        return loss_of(pictures[:, :, None] / 255, generator)

    def of_clips(generator: torch.Generator) -> Tensor:
        return loss_of(real_batch(batch, generator)[0], generator)

    def of_decoding(generator: torch.Generator) -> Tensor:
        return loss_of(real_batch(batch, generator)[0], generator, encoder=False)

    stages = (
        (path.with_name("vae-pictures.safetensors"), of_pictures, pictures, vae),
        (path.with_name("vae-clips.safetensors"), of_clips, clips, vae),
        (path.with_name("vae-decoder.safetensors"), of_decoding, decoding, vae.decoder),
    )
    for number, (kept, loss, steps, trained) in enumerate(stages):
        if not kept.exists():
            generator = torch.Generator().manual_seed(seed + number)
            train_averaged(trained.train(), loss, kept, steps=steps, lr=lr, generator=generator)
        load(trained, kept)
    save(vae, path)
    return with_scale(vae)


@torch.no_grad()
def with_scale(vae: AutoencoderKLCogVideoX) -> AutoencoderKLCogVideoX:
    """Set `scaling_factor` so that scaled latents have unit variance about their channels' means.

    The means are far from zero here and tell nothing: with their squares in it, what differs between clips would be
    small beside the noise at all but the last timesteps.
    """
    clips = real_batch(64, torch.Generator().manual_seed(3))[0] * 2 - 1
    variance = vae.encode(clips).latent_dist.mean.var(dim=(0, 2, 3, 4)).mean()
    vae.register_to_config(scaling_factor=round(variance.rsqrt().item(), 5))
    return vae
