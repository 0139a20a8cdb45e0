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
from selfnpo_core.worlds.judge import Rated, change_one_attribute
from selfnpo_core.worlds.things import to_uint8
from selfnpo_image.demo import world
from selfnpo_image.demo.judges import Judge, Oracle

SIZES = [len(values) for values in world.ATTRIBUTES.values()]


def damage_pictures(pictures: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Ghosts of another picture, a wobble of the outlines, or blur, by row. pictures (B, 3, 64, 64), level (B,)."""
    count, strength = len(pictures), level[:, None, None, None]
    kind = torch.randint(4, (count, 1, 1, 1), generator=generator)
    other = pictures[torch.randperm(count, generator=generator)]
    ghost = torch.lerp(pictures, other, 0.6 * strength)
    coarse = torch.randn(count, 2, 8, 8, generator=generator)
    field = F.interpolate(coarse, size=world.SIDE, mode="bicubic").permute(0, 2, 3, 1) * 0.12 * strength
    grid = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(pictures.shape), align_corners=False)
    wobble = F.grid_sample(pictures, grid + field, padding_mode="border", align_corners=False)
    small = F.interpolate(F.avg_pool2d(pictures, 5, stride=4, padding=2), size=world.SIDE, mode="bilinear")
    blurred = torch.lerp(pictures, small, strength)
    return torch.where(kind == 0, ghost, torch.where(kind == 1, wobble, torch.where(kind == 2, blurred, pictures)))


@torch.no_grad()
def rated_pictures(vae: AutoencoderKL, count: int, generator: torch.Generator) -> Rated:
    """Draw rated pictures; the fourth kind of damage is noise in the latents, the likest to a bad sample."""
    parts: list[tuple[Tensor, ...]] = []
    for _ in progress(count // 128, "rated pictures"):
        asked = world.draw_labels(128, generator)
        wrong = torch.rand(128, generator=generator) < 0.4
        drawn = torch.where(wrong[:, None], change_one_attribute(asked, SIZES, generator), asked)
        damage = torch.rand(128, generator=generator) * (torch.rand(128, generator=generator) < 0.8)
        clean = world.render(drawn, generator)
        harmed = damage_pictures(clean, damage, generator)
        untouched = (harmed == clean).flatten(1).all(1)
        latents = vae.encode(harmed * 2 - 1).latent_dist.mean * vae.config.scaling_factor
        noise = 0.5 * (untouched * damage)[:, None, None, None] * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode((latents + noise) / vae.config.scaling_factor).sample / 2 + 0.5
        parts.append((to_uint8(decoded), asked, damage, wrong))
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
