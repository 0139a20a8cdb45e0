"""The judge: a preference model, trained on pictures rated as they were harmed (`selfnpo_core.worlds.judge`).

All pictures pass through the autoencoder, so that its traces tell nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from selfnpo_core.worlds import judge as judging
from selfnpo_core.worlds.building import fingerprint, load, progress
from selfnpo_core.worlds.judge import Rated, draw_kinds, draw_twins
from selfnpo_core.worlds.things import to_uint8
from selfnpo_image.demo import world
from selfnpo_image.demo.judges import Judge, Oracle

SIZES = [len(values) for values in world.ATTRIBUTES.values()]
KINDS = 6
"""Of harm: three of pictures, three of latents."""


def damage_pictures(pictures: Tensor, level: Tensor, kind: Tensor, generator: torch.Generator) -> Tensor:
    """Ghosts of another picture, a wobble of the outlines, or blur, by row; further kinds are left as they are.

    pictures (B, 3, 64, 64), level (B,), kind (B,) int64.
    """
    count, strength, kind = len(pictures), level[:, None, None, None], kind[:, None, None, None]
    other = pictures.roll(count // 2, 0)
    ghost = torch.lerp(pictures, other, 0.6 * strength)
    coarse = torch.randn(count, 2, 8, 8, generator=generator)
    field = F.interpolate(coarse, size=world.SIDE, mode="bicubic").permute(0, 2, 3, 1) * 0.12 * strength
    grid = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(pictures.shape), align_corners=False)
    wobble = F.grid_sample(pictures, grid + field, padding_mode="border", align_corners=False)
    small = F.interpolate(F.avg_pool2d(pictures, 5, stride=4, padding=2), size=world.SIDE, mode="bilinear")
    blurred = torch.lerp(pictures, small, strength)
    for number, harmed in enumerate((ghost, wobble, blurred)):
        pictures = torch.where(kind == number, harmed, pictures)
    return pictures


def damage_latents(latents: Tensor, level: Tensor, kind: Tensor, generator: torch.Generator) -> Tensor:
    """Noise, fine parts washed out, or patches of another picture, by row: the likest to bad samples.

    latents (B, 4, 16, 16) of unit variance, level (B,), kind (B,) int64, of which the first three are not of latents.
    """
    strength, kind = level[:, None, None, None], kind[:, None, None, None]
    noisy = latents + 0.6 * strength * torch.randn(latents.shape, generator=generator)
    small = F.interpolate(F.avg_pool2d(latents, 4), size=latents.shape[-2:], mode="bilinear")
    washed = torch.lerp(latents, small, strength)
    blobs = F.interpolate(
        torch.randn(len(latents), 1, 5, 5, generator=generator), size=latents.shape[-2:], mode="bicubic"
    )
    least = blobs.flatten(1).quantile(1 - 0.5 * level, dim=1).diagonal()[:, None, None, None]
    patched = torch.where(blobs > least, latents.roll(len(latents) // 2, 0), latents)
    for number, harmed in enumerate((noisy, washed, patched), start=3):
        latents = torch.where(kind == number, harmed, latents)
    return latents


@torch.no_grad()
def rated_pictures(vae: AutoencoderKL, count: int, generator: torch.Generator) -> Rated:
    """Draw rated pictures, twins beside each other."""
    parts: list[tuple[Tensor, ...]] = []
    for _ in progress(count // 128, "rated pictures"):
        twins = draw_twins(world.draw_labels(64, generator), SIZES, generator)
        as_asked = world.render(twins.asked[::2], generator).repeat_interleave(2, dim=0)
        clean = torch.where(twins.wrong[:, None, None, None], world.render(twins.drawn, generator), as_asked)
        kind = draw_kinds(len(clean), KINDS, generator)
        harmed = damage_pictures(clean, twins.damage, kind, generator)
        latents = vae.encode(harmed * 2 - 1).latent_dist.mean * vae.config.scaling_factor
        latents = damage_latents(latents, twins.damage, kind, generator)
        decoded = vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5
        parts.append((to_uint8(decoded), twins.asked, twins.damage, twins.wrong))
    pictures, asked, damage, wrong = (torch.cat(column) for column in zip(*parts, strict=True))
    return Rated(data=pictures, asked=asked, damage=damage, wrong=wrong)


def train(
    path: Path,
    vae: AutoencoderKL,
    oracle: Oracle,
    *,
    steps: int = 4000,
    batch: int = 256,
    count: int = 16_000,
    seed: int = 5,
) -> Judge:
    """Train the judge, its convolutions beginning as the oracle's. `batch` is drawn before filtering."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge()
    if path.exists():
        return load(judge, path)
    judge.trunk[:-2].load_state_dict(oracle.trunk[:-2].state_dict())
    store = path.with_name(f"rated-{fingerprint(vae)}.safetensors")
    rated = judging.kept(store, lambda: rated_pictures(vae, count, generator))
    judging.train_judge(judge, rated, path, steps=steps, batch=batch, generator=generator)
    return judge.eval()


def agreement(judge: Judge, vae: AutoencoderKL, seed: int = 6) -> dict[str, float]:
    """Share of fresh known pairs that the judge orders rightly, by what decides them."""
    generator = torch.Generator().manual_seed(seed)
    return judging.agreement(judge, rated_pictures(vae, 2048, generator), generator)
