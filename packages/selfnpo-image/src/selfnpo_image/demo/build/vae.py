"""The autoencoder: AutoencoderKL, 64×64×3 → 16×16×4 latents, as Stable Diffusion's in small."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from selfnpo_core.worlds.building import load, save, train_averaged
from selfnpo_image.demo.build.oracle import real_batch


def build() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 and squared error, and L1 of the horizontal and vertical differences, which keeps edges sharp."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2.0 * error.square().mean() + 0.5 * edges


def train(
    path: Path, *, steps: int = 2500, decoding: int = 3600, batch: int = 16, lr: float = 2e-3, seed: int = 2
) -> AutoencoderKL:
    """Train the autoencoder, then its decoder alone: what the latents are no longer changes, and it draws better.

    The scaling factor becomes 1 / standard deviation of the latents, as SD's was chosen. An interrupted training goes
    on from the state that it keeps beside `path`.
    """
    torch.manual_seed(seed)
    vae = build()
    if path.exists():
        return with_scale(load(vae, path))
    vae.to(memory_format=torch.channels_last)

    def loss_of(generator: torch.Generator, *, encoder: bool = True) -> Tensor:
        pictures = real_batch(batch, generator)[0] * 2 - 1
        with torch.set_grad_enabled(encoder):
            posterior = vae.encode(pictures).latent_dist
        output = vae.decode(posterior.sample(generator)).sample
        return reconstruction_loss(output, pictures) + 1e-6 * posterior.kl().mean()

    stages: tuple[tuple[Path, Callable[[torch.Generator], Tensor], int, nn.Module], ...] = (
        (path.with_name("vae-both.safetensors"), loss_of, steps, vae),
        (path.with_name("vae-decoder.safetensors"), partial(loss_of, encoder=False), decoding, vae.decoder),
    )
    for number, (kept, loss, updates, trained) in enumerate(stages):
        if not kept.exists():
            generator = torch.Generator().manual_seed(seed + number)
            train_averaged(trained.train(), loss, kept, steps=updates, lr=lr, generator=generator)
        load(trained, kept)
    save(vae, path)
    return with_scale(vae.eval())


@torch.no_grad()
def with_scale(vae: AutoencoderKL) -> AutoencoderKL:
    """Set `scaling_factor` so that latents have unit standard deviation."""
    pictures = real_batch(512, torch.Generator().manual_seed(3))[0] * 2 - 1
    vae.register_to_config(scaling_factor=round(1 / vae.encode(pictures).latent_dist.mean.std().item(), 5))
    return vae
