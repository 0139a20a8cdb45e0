"""Put the trained parts together, refuse what is not good enough, and write the package's assets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from selfnpo_core.errors import RunError
from selfnpo_core.evaluation import Moments, frechet_distance
from selfnpo_image.demo import world
from selfnpo_image.demo.build import common
from selfnpo_image.demo.judges import Oracle

MAX_RECONSTRUCTION_FID = 8.0
MIN_JOINT_ACCURACY = 0.8
REFERENCE_PICTURES = 50_000


@torch.no_grad()
def reference(oracle: Oracle, count: int = REFERENCE_PICTURES, seed: int = 7) -> Moments:
    """Moments of the oracle's features of real pictures."""
    generator = torch.Generator().manual_seed(seed)
    parts = [oracle.features(common.real_batch(500, generator)[0]) for _ in common.progress(count // 500, "reference")]
    return Moments.of(torch.cat(parts))


@torch.no_grad()
def reconstruction_fid(vae: AutoencoderKL, oracle: Oracle, moments: Moments, count: int = 2000, seed: int = 8) -> float:
    """Fréchet distance between real pictures and what the autoencoder makes of others."""
    generator = torch.Generator().manual_seed(seed)
    features: list[Tensor] = []
    for _ in range(count // 100):
        pictures = common.real_batch(100, generator)[0] * 2 - 1
        output = vae.decode(vae.encode(pictures).latent_dist.mean).sample / 2 + 0.5
        features.append(oracle.features(world.to_uint8(output).float() / 255))
    return frechet_distance(Moments.of(torch.cat(features)), moments)


def refuse_ragged(joint_accuracy: float, reconstruction: float) -> None:
    """On a model that draws badly nothing can be concluded: raise rather than ship it."""
    if joint_accuracy < MIN_JOINT_ACCURACY:
        raise RunError(
            f"joint prompt accuracy {joint_accuracy:.3f} at the best scale is under {MIN_JOINT_ACCURACY}: "
            "train the denoiser for longer"
        )
    if reconstruction > MAX_RECONSTRUCTION_FID:
        raise RunError(
            f"the autoencoder's reconstruction FID {reconstruction:.2f} is over {MAX_RECONSTRUCTION_FID}: "
            "train the autoencoder for longer"
        )


def save_half(module: nn.Module, path: Path) -> None:
    """Floating-point tensors in float16, which is what ships."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, path)


def write_parts(
    folder: Path, pipe: StableDiffusionPipeline, oracle: Oracle, judge: nn.Module, moments: Moments
) -> None:
    """The assets without the card: pipeline folder, judges, reference statistics."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "model").exists():
        shutil.rmtree(folder / "model")
    pipe.to(torch.float16).save_pretrained(folder / "model", safe_serialization=True)
    pipe.to(torch.float32)
    save_half(oracle, folder / "oracle.safetensors")
    save_half(judge, folder / "judge.safetensors")
    save_file(
        {
            "mean": moments.mean.float(),
            "covariance": moments.covariance.float(),
            "count": torch.tensor(moments.count),
        },
        folder / "reference.safetensors",
    )


def write_card(folder: Path, figures: dict[str, object]) -> None:
    """`card.json` with what was measured, and the model's README.md."""
    (folder / "card.json").write_text(json.dumps({"schema": 1, **figures}, indent=2) + "\n", encoding="utf-8")
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items() if not isinstance(value, dict))
    (folder / "model" / "README.md").write_text(_CARD.format(rows=rows), encoding="utf-8")


_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The Self-NPO demo model

A toy, made to show a method in minutes on a CPU: a true `StableDiffusionPipeline` of the SD1.5 classes that draws one
or two coloured shapes at 64×64. It knows nothing beyond them, and figures measured on it say nothing of the size of an
effect on real models.

- Data: pictures drawn by code, with captions (`selfnpo_image.demo.world`); no photograph, no person, nothing collected.
- Training: `python tools/build_demo_models.py image`, from random weights, on CPU; 15 % of the captions dropped.
- Weights: float16 safetensors; the exponential moving average of training.
- Judges beside it (`oracle.safetensors`, `judge.safetensors`) were trained on the same world by the same script.

| figure | value |
| --- | --- |
{rows}
"""
