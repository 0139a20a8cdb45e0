"""The autoencoder: AutoencoderKLCogVideoX, (9, 64, 64) × 3 → (3, 8, 8) × 8 latents, as CogVideoX's in small."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from selfnpo_core.stages import cosine, load, progress, save
from selfnpo_video.demo.build.oracle import real_batch


def build() -> AutoencoderKLCogVideoX:
    """Few channels, so few groups: with one channel a group, normalising would take a picture's tones away."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 16, 32, 48),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=1,
        sample_height=64,
        sample_width=64,
    )


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 and squared error, L1 of the differences along each side for the edges, and of means of 8×8 for the tones."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    tones = F.avg_pool3d(error, (1, 8, 8)).abs().mean()
    return error.abs().mean() + 2.0 * error.square().mean() + 0.5 * edges + tones


def crop(clips: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """The same random square of `size` pixels of every clip. clips: (B, C, F, H, W)."""
    top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in clips.shape[-2:])
    return clips[..., top : top + size, left : left + size]


def train(path: Path, *, steps: int = 2600, batch: int = 4, lr: float = 2e-3, seed: int = 2) -> AutoencoderKLCogVideoX:
    """Train the autoencoder; its scaling factor becomes 1 / standard deviation of the latents.

    Most steps take squares of half the side, twice as many, which costs half as much; the last sixth takes whole clips.
    """
    torch.manual_seed(seed)
    generator, vae = torch.Generator().manual_seed(seed), build()
    if path.exists():
        load(vae, path)
        return with_scale(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr, weight_decay=0.0, betas=(0.9, 0.99))
    bar, whole_from = progress(steps, "autoencoder"), steps * 5 // 6
    for step in bar:
        clips = real_batch(batch if step >= whole_from else 2 * batch, generator)[0] * 2 - 1
        if step < whole_from:
            clips = crop(clips, clips.shape[-1] // 2, generator)
        posterior = vae.encode(clips).latent_dist
        output = vae.decode(posterior.sample(generator)).sample
        loss = reconstruction_loss(output, clips) + 1e-6 * posterior.kl().mean()
        optimizer.param_groups[0]["lr"] = lr * cosine(step, steps, warmup=100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    save(vae, path)
    return with_scale(vae.eval())


@torch.no_grad()
def with_scale(vae: AutoencoderKLCogVideoX) -> AutoencoderKLCogVideoX:
    """Set `scaling_factor` so that latents have unit standard deviation."""
    clips = real_batch(64, torch.Generator().manual_seed(3))[0] * 2 - 1
    vae.register_to_config(scaling_factor=round(1 / vae.encode(clips).latent_dist.mean.std().item(), 5))
    return vae
