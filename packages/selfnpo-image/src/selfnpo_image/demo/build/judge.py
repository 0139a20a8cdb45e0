"""The judge: a preference model trained on pairs whose better side is known.

Each training picture has an asked caption, a damage level in [0, 1] and, in some of them, one attribute drawn otherwise
than asked. All pass through the autoencoder, so that its traces tell nothing. Of two pictures the better is the one
that is as asked when the damage is alike, or the less damaged when both are as asked; the loss is Bradley–Terry's
−log σ(score_better − score_worse).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfnpo_image.demo import world
from selfnpo_image.demo.build import common
from selfnpo_image.demo.judges import Judge, Oracle


@dataclass(frozen=True, kw_only=True)
class Rated:
    """pictures (N, 3, 64, 64) uint8, asked labels (N, 7), damage (N,) in [0, 1], wrong (N,) bool."""

    pictures: Tensor
    asked: Tensor
    damage: Tensor
    wrong: Tensor


def change_one_attribute(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Labels (B, 7) with one applicable attribute other than the layout set to another value."""
    changed = labels.clone()
    sizes = torch.tensor([len(values) for values in world.ATTRIBUTES.values()])
    weights = (labels[:, 1:] >= 0).float()
    column = 1 + torch.multinomial(weights, 1, generator=generator)[:, 0]
    rows = torch.arange(len(labels))
    shift = 1 + (torch.rand(len(labels), generator=generator) * (sizes[column] - 1)).long()
    changed[rows, column] = (labels[rows, column] + shift) % sizes[column]
    return changed


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
    for _ in common.progress(count // 128, "rated pictures"):
        asked = world.draw_labels(128, generator)
        wrong = torch.rand(128, generator=generator) < 0.4
        drawn = torch.where(wrong[:, None], change_one_attribute(asked, generator), asked)
        damage = torch.rand(128, generator=generator) * (torch.rand(128, generator=generator) < 0.8)
        clean = world.render(world.draw_scenes(drawn, generator))
        harmed = damage_pictures(clean, damage, generator)
        untouched = (harmed == clean).flatten(1).all(1)
        latents = vae.encode(harmed * 2 - 1).latent_dist.mean * vae.config.scaling_factor
        noise = 0.5 * (untouched * damage)[:, None, None, None] * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode((latents + noise) / vae.config.scaling_factor).sample / 2 + 0.5
        parts.append((world.to_uint8(decoded), asked, damage, wrong))
    pictures, asked, damage, wrong = (torch.cat(column) for column in zip(*parts, strict=True))
    return Rated(pictures=pictures, asked=asked, damage=damage, wrong=wrong)


def known_pairs(rated: Rated, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (better, worse) of pairs whose order is known, and whether the damage (True) or the content decided."""
    a = torch.randint(len(rated.damage), (count,), generator=generator)
    b = torch.randint(len(rated.damage), (count,), generator=generator)
    more = rated.damage[b] - rated.damage[a]
    by_damage = ~rated.wrong[a] & ~rated.wrong[b] & (more > 0.1)
    by_content = ~rated.wrong[a] & rated.wrong[b] & (more.abs() < 0.15)
    keep = by_damage | by_content
    return a[keep], b[keep], by_damage[keep]


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
        return common.load(judge, path)
    judge.trunk[:-2].load_state_dict(oracle.trunk[:-2].state_dict())
    rated = _kept(path.with_name("rated.safetensors"), lambda: rated_pictures(vae, count, generator))
    optimizer = torch.optim.AdamW(judge.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: common.cosine(s, steps))
    for _ in common.progress(steps, "judge"):
        better, worse, _ = known_pairs(rated, batch, generator)
        rows = torch.cat([better, worse])
        pictures = rated.pictures[rows].float() / 255
        pictures = pictures + 0.02 * torch.randn(pictures.shape, generator=generator)
        first, second = judge(pictures, rated.asked[rows]).chunk(2)
        loss = -F.logsigmoid(first - second).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    common.save(judge, path)
    return judge.eval()


def _kept(path: Path, make: Callable[[], Rated]) -> Rated:
    """Rated pictures from disk, or made now and put there."""
    if not path.exists():
        save_file({k: v.to(torch.uint8) if v.dtype == torch.bool else v for k, v in vars(make()).items()}, path)
    stored = load_file(path)
    return Rated(**{**stored, "wrong": stored["wrong"].bool()})


@torch.no_grad()
def agreement(judge: Judge, vae: AutoencoderKL, seed: int = 6) -> dict[str, float]:
    """Share of fresh known pairs that the judge orders rightly, by what decides them."""
    generator = torch.Generator().manual_seed(seed)
    rated = rated_pictures(vae, 2048, generator)
    scores = judge(rated.pictures.float() / 255, rated.asked)
    better, worse, by_damage = known_pairs(rated, 40_000, generator)
    right = scores[better] > scores[worse]
    return {
        "damage": round(right[by_damage].float().mean().item(), 4),
        "content": round(right[~by_damage].float().mean().item(), 4),
    }
