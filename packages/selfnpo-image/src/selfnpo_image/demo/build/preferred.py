"""The demo model's preference-tuned variant: a LoRA by Diffusion-DPO (2311.12908), the oracle as judge.

Pairs are the model's own: two pictures of every caption, of which the oracle prefers the one where it is surer of what
the caption names. No real picture takes part.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from selfnpo_core.objective import diffusion_dpo_loss
from selfnpo_core.training.lora_student import lora_target_modules
from selfnpo_core.worlds.building import cosine, progress
from selfnpo_core.worlds.things import to_uint8
from selfnpo_core.worlds.world import Demo, Task
from selfnpo_image.families import find_base
from selfnpo_image.sd15 import SD15

ETA = "eta"
DRAWN_AT = 1.0
"""Guidance scale of the pairs: none, for there many are wrong, and the pictures are the model's own distribution."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """prompts: N captions; winner, loser: latents (N, 4, 8, 8) as the denoiser sees them; gap: (N,) log-odds."""

    prompts: list[str]
    winner: Tensor
    loser: Tensor
    gap: Tensor


@torch.no_grad()
def draw_pairs(demo: Demo, pipe: Any, count: int, *, seed: int, least_gap: float = 0.5, batch: int = 64) -> Pairs:
    """Pairs of `count` captions, without those that the oracle hardly tells apart."""
    task = Task.draw(demo.world, count, seed)
    pipe.set_progress_bar_config(disable=True)
    latents: list[Tensor] = []
    for part in progress(2 * (-(-count // batch)), "pairs"):
        rows = slice(part // 2 * batch, part // 2 * batch + batch)
        offset = 500_000 * (part % 2)  # the second picture has other noise
        drawn = pipe(
            task.prompts[rows],
            num_inference_steps=demo.steps,
            guidance_scale=DRAWN_AT,
            generator=[torch.Generator().manual_seed(number + offset) for number in task.seeds[rows]],
            output_type="latent",
        )
        latents.append(drawn.images)
    first, second = torch.cat(latents[::2]), torch.cat(latents[1::2])
    gap = _liking(demo, pipe.vae, first, task.labels) - _liking(demo, pipe.vae, second, task.labels)
    kept = gap.abs() >= least_gap
    won = (gap > 0)[:, None, None, None]
    return Pairs(
        prompts=[text for text, keep in zip(task.prompts, kept.tolist(), strict=True) if keep],
        winner=torch.where(won, first, second)[kept],
        loser=torch.where(won, second, first)[kept],
        gap=gap.abs()[kept],
    )


def train(
    folder: Path,
    demo: Demo,
    *,
    captions: int = 2048,
    steps: int = 400,
    batch: int = 32,
    lr: float = 5e-4,
    beta: float = 2000.0,
    rank: int = 16,
    seed: int = 21,
) -> Path:
    """Write folder/pytorch_lora_weights.safetensors; `beta` as `beta_dpo` of Diffusion-DPO's training script."""
    pairs = draw_pairs(demo, demo.pipeline(), captions, seed=seed)
    print(f"{len(pairs.prompts)} of {captions} pairs, oracle's mean gap {pairs.gap.mean():.2f}")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone = SD15(find_base("demo"), device="cpu")
    backbone.embed(pairs.prompts)
    network: Any = backbone.denoiser
    targets = lora_target_modules(backbone, "all")
    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), adapter_name=ETA)
    trained = [parameter for name, parameter in network.named_parameters() if ".lora_" in name]
    optimizer = torch.optim.AdamW(trained, lr, weight_decay=0.01)
    ahead, loss = 0.0, 0.0
    bar = progress(steps, "preference")
    for step in bar:
        rows = torch.randint(len(pairs.prompts), (batch,), generator=generator)
        value, implicit = _loss(backbone, network, pairs, rows, beta, generator)
        optimizer.param_groups[0]["lr"] = lr * cosine(step, steps)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        loss, ahead = loss + 0.05 * (value.item() - loss), ahead + 0.05 * (implicit - ahead)
        bar.set_postfix(loss=f"{loss:.3f}", agrees=f"{ahead:.2f}", refresh=False)
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_lora(folder, ETA)
    return folder / "pytorch_lora_weights.safetensors"


def _loss(
    backbone: SD15, network: Any, pairs: Pairs, rows: Tensor, beta: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Diffusion-DPO's loss, and the share of pairs that the model orders as the oracle does.

    A pair has one timestep and one noise; errors are ½·mean (ε̂ − ε)², as `diffusion_dpo_loss` wants them.
    """
    noise = torch.randn(pairs.winner[rows].shape, generator=generator)
    t = torch.randint(int(backbone.schedule.max_timestep) + 1, (len(rows),), generator=generator)
    level = backbone.schedule.at(t, like=noise)
    x_t = torch.cat([level.alpha * x0 + level.sigma * noise for x0 in (pairs.winner[rows], pairs.loser[rows])])

    def errors() -> tuple[Tensor, Tensor]:
        output = backbone.predict(x_t, t.repeat(2), rows.repeat(2))
        error = 0.5 * (output - noise.repeat(2, 1, 1, 1)).square().flatten(1).mean(dim=1)
        winner, loser = error.chunk(2)
        return winner, loser

    network.disable_adapters()
    with torch.no_grad():
        winner_reference, loser_reference = errors()
    network.enable_adapters()
    winner, loser = errors()
    value = diffusion_dpo_loss(
        winner_error=winner,
        loser_error=loser,
        winner_reference_error=winner_reference,
        loser_reference_error=loser_reference,
        beta=beta,
    )
    ahead = (winner - winner_reference) < (loser - loser_reference)
    return value, ahead.float().mean().item()


def _liking(demo: Demo, vae: nn.Module, latents: Tensor, labels: Tensor) -> Tensor:
    """log-probability (N,) that the oracle gives to what the captions name."""
    oracle, liked = demo.world.judges.oracle, []
    for some, asked in zip(latents.split(128), labels.split(128), strict=True):
        pictures = to_uint8(vae.decode(some / vae.config.scaling_factor).sample / 2 + 0.5).float() / 255  # type: ignore[operator,union-attr]
        features = oracle.features(pictures)  # type: ignore[operator]
        total = torch.zeros(len(some))
        for k, head in enumerate(oracle.heads):  # type: ignore[arg-type]
            chosen = head(features).log_softmax(dim=1).gather(1, asked[:, k : k + 1].clamp(min=0))[:, 0]
            total += torch.where(asked[:, k] >= 0, chosen, 0.0)
        liked.append(total)
    return torch.cat(liked)
