"""The autoencoder: AutoencoderKL, 64×64×3 → 16×16×4 latents, as Stable Diffusion's in small."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from selfnpo_core.worlds.building import cosine, load, progress, save
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


def train(path: Path, *, steps: int = 2500, batch: int = 16, lr: float = 2e-3, seed: int = 2) -> AutoencoderKL:
    """Train the autoencoder; its scaling factor becomes 1 / standard deviation of the latents, as SD's was chosen."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = build()
    if path.exists():
        return with_scale(load(vae, path))
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: cosine(s, steps, warmup=100))
    bar = progress(steps, "autoencoder")
    for step in bar:
        pictures = real_batch(batch, generator)[0] * 2 - 1
        posterior = vae.encode(pictures).latent_dist
        output = vae.decode(posterior.sample(generator)).sample
        loss = reconstruction_loss(output, pictures) + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", mse=f"{F.mse_loss(output, pictures).item():.5f}", refresh=False)
    save(vae, path)
    return with_scale(vae.eval())


@torch.no_grad()
def with_scale(vae: AutoencoderKL) -> AutoencoderKL:
    """Set `scaling_factor` so that latents have unit standard deviation."""
    pictures = real_batch(512, torch.Generator().manual_seed(3))[0] * 2 - 1
    vae.register_to_config(scaling_factor=round(1 / vae.encode(pictures).latent_dist.mean.std().item(), 5))
    return vae
