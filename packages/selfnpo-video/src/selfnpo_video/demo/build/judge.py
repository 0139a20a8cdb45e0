"""The judge: a preference model, trained on clips rated as they were harmed (`selfnpo_core.worlds.judge`).

All clips pass through the autoencoder, so that its traces tell nothing.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from selfnpo_core.worlds import judge as judging
from selfnpo_core.worlds.building import fingerprint, load, progress
from selfnpo_core.worlds.judge import Rated, draw_kinds, draw_twins
from selfnpo_core.worlds.things import to_uint8
from selfnpo_video.demo import world
from selfnpo_video.demo.judges import VideoJudge, VideoOracle

SIZES = [len(values) for values in world.ATTRIBUTES.values()]
KINDS = 6
"""Of harm: four of clips, two of latents."""
CHUNK = 32


def damage_clips(clips: Tensor, level: Tensor, kind: Tensor, generator: torch.Generator) -> Tensor:
    """Ghosts of another clip, outlines that wobble from frame to frame, blur, or jumps in time, by row.

    clips: (B, 3, F, 32, 32), level: (B,), kind: (B,) int64; further kinds are left as they are.
    """
    count, frames = len(clips), clips.shape[2]
    strength, kind = level[:, None, None, None, None], kind[:, None, None, None, None]
    ghost = torch.lerp(clips, clips.roll(count // 2, 0), 0.6 * strength)
    pictures = clips.transpose(1, 2).flatten(0, 1)  # (B F, 3, H, W)
    each = level.repeat_interleave(frames)[:, None, None, None]
    coarse = torch.randn(count * frames, 2, 8, 8, generator=generator)
    field = F.interpolate(coarse, size=world.SIDE, mode="bicubic").permute(0, 2, 3, 1) * 0.12 * each
    grid = F.affine_grid(torch.eye(2, 3).expand(len(pictures), 2, 3), list(pictures.shape), align_corners=False)
    wobble = F.grid_sample(pictures, grid + field, padding_mode="border", align_corners=False)
    small = F.interpolate(F.avg_pool2d(pictures, 3, stride=2, padding=1), size=world.SIDE, mode="bilinear")
    blurred = torch.lerp(pictures, small, each)
    wobble, blurred = (x.unflatten(0, (count, frames)).transpose(1, 2) for x in (wobble, blurred))
    jitter = 0.6 * frames * level[:, None] * (torch.rand(count, frames, generator=generator) - 0.5)
    order = (torch.arange(frames) + jitter).round().long().clamp(0, frames - 1)
    jumps = clips.gather(2, order[:, None, :, None, None].expand_as(clips))
    for index, harmed in enumerate((ghost, wobble, blurred, jumps)):
        clips = torch.where(kind == index, harmed, clips)
    return clips


def damage_latents(latents: Tensor, level: Tensor, kind: Tensor, generator: torch.Generator) -> Tensor:
    """Noise, or fine parts washed out, by row: the likest to bad samples.

    latents (B, 16, F, 8, 8) of unit variance, level (B,), kind (B,) int64, of which the first four are not of latents.
    """
    strength, kind = level[:, None, None, None, None], kind[:, None, None, None, None]
    noisy = latents + 0.8 * strength * torch.randn(latents.shape, generator=generator)
    small = F.interpolate(F.avg_pool3d(latents, (1, 2, 2)), size=latents.shape[-3:], mode="trilinear")
    washed = torch.lerp(latents, small, strength)
    return torch.where(kind == 4, noisy, torch.where(kind == 5, washed, latents))


@torch.no_grad()
def rated_clips(vae: AutoencoderKLCogVideoX, count: int, generator: torch.Generator) -> Rated:
    """Draw rated clips, twins beside each other."""
    parts: list[tuple[Tensor, ...]] = []
    for _ in progress(count // CHUNK, "rated clips"):
        twins = draw_twins(world.draw_labels(CHUNK // 2, generator), SIZES, generator)
        as_asked = world.render(world.draw_clips(twins.asked[::2], generator)).repeat_interleave(2, dim=0)
        other = world.render(world.draw_clips(twins.drawn, generator))
        clean = torch.where(twins.wrong[:, None, None, None, None], other, as_asked)
        kind = draw_kinds(len(clean), KINDS, generator)
        harmed = damage_clips(clean, twins.damage, kind, generator)
        latents = vae.encode(harmed * 2 - 1).latent_dist.mean * vae.config.scaling_factor
        latents = damage_latents(latents, twins.damage, kind, generator)
        decoded = vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5
        parts.append((to_uint8(decoded), twins.asked, twins.damage, twins.wrong))
    data, asked, damage, wrong = (torch.cat(column) for column in zip(*parts, strict=True))
    return Rated(data=data, asked=asked, damage=damage, wrong=wrong)


def train(
    path: Path,
    vae: AutoencoderKLCogVideoX,
    oracle: VideoOracle,
    *,
    steps: int = 2000,
    batch: int = 64,
    count: int = 12_288,
    seed: int = 5,
) -> VideoJudge:
    """Train the judge, its frames' convolutions beginning as the oracle's. `batch` is drawn before filtering."""
    torch.manual_seed(seed)
    generator, judge = torch.Generator().manual_seed(seed), VideoJudge()
    if path.exists():
        load(judge, path)
        return judge
    judge.trunk.frames.load_state_dict(oracle.trunk.frames.state_dict())
    judge.trunk.time.load_state_dict(oracle.trunk.time.state_dict())
    store = path.with_name(f"rated-{fingerprint(vae)}.safetensors")
    rated = judging.kept(store, lambda: rated_clips(vae, count, generator))
    judging.train_judge(judge, rated, path, steps=steps, batch=batch, generator=generator)
    return judge.eval()


def agreement(judge: VideoJudge, vae: AutoencoderKLCogVideoX, seed: int = 6) -> dict[str, float]:
    """Share of fresh known pairs that the judge orders rightly, by what decides them."""
    generator = torch.Generator().manual_seed(seed)
    return judging.agreement(judge, rated_clips(vae, 1024, generator), generator)
