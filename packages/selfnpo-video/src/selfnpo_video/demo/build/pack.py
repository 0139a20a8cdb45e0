"""Put the trained parts together, refuse what is not good enough, and write the package's assets."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline
from safetensors.torch import save_file

from selfnpo_core.drawing import to_uint8
from selfnpo_core.errors import RunError
from selfnpo_core.evaluation import Moments, frechet_distance
from selfnpo_core.stages import progress
from selfnpo_video.demo.build.oracle import real_batch
from selfnpo_video.demo.judges import VideoOracle

MAX_RECONSTRUCTION_FVD = 12.0
MIN_ACCURACY = 0.8
REFERENCE_CLIPS = 10_000


@torch.no_grad()
def reference(oracle: VideoOracle, count: int = REFERENCE_CLIPS, seed: int = 7) -> Moments:
    """Moments of the oracle's features of real clips."""
    generator = torch.Generator().manual_seed(seed)
    return Moments.of(
        torch.cat([oracle.features(real_batch(100, generator)[0]) for _ in progress(count // 100, "reference")])
    )


@torch.no_grad()
def reconstruction_fvd(
    vae: AutoencoderKLCogVideoX, oracle: VideoOracle, moments: Moments, count: int = 1000, seed: int = 8
) -> float:
    """Fréchet distance between real clips and what the autoencoder makes of others."""
    generator = torch.Generator().manual_seed(seed)
    features = []
    for _ in progress(count // 25, "reconstruction"):
        clips = real_batch(25, generator)[0] * 2 - 1
        output = vae.decode(vae.encode(clips).latent_dist.mean).sample / 2 + 0.5
        features.append(oracle.features(to_uint8(output).float() / 255))
    return frechet_distance(Moments.of(torch.cat(features)), moments)


def refuse_ragged(accuracy: float, reconstruction: float) -> None:
    """On a model that draws badly nothing can be concluded: raise rather than ship it."""
    if accuracy < MIN_ACCURACY:
        raise RunError(
            f"prompt accuracy {accuracy:.3f} at the best scale is under {MIN_ACCURACY}: train the denoiser for longer"
        )
    if reconstruction > MAX_RECONSTRUCTION_FVD:
        raise RunError(
            f"the autoencoder's reconstruction distance {reconstruction:.2f} is over {MAX_RECONSTRUCTION_FVD}: "
            "train the autoencoder for longer"
        )


def write_assets(
    folder: Path, pipe: CogVideoXPipeline, oracle: VideoOracle, moments: Moments, figures: dict[str, object]
) -> None:
    """Pipeline folder in float16, oracle, reference statistics, card.json and the model's README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "model").exists():
        shutil.rmtree(folder / "model")
    pipe.to(torch.float16).save_pretrained(folder / "model", safe_serialization=True)
    pipe.to(torch.float32)
    half = {k: v.half() if v.is_floating_point() else v for k, v in oracle.state_dict().items()}
    save_file({k: v.contiguous() for k, v in half.items()}, folder / "oracle.safetensors")
    save_file(
        {
            "mean": moments.mean.float(),
            "covariance": moments.covariance.float(),
            "count": torch.tensor(moments.count),
        },
        folder / "reference.safetensors",
    )
    (folder / "card.json").write_text(json.dumps({"schema": 1, **figures}, indent=2) + "\n", encoding="utf-8")
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items() if not isinstance(value, dict))
    (folder / "model" / "README.md").write_text(_CARD.format(rows=rows), encoding="utf-8")


_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---
# The Self-NPO video demo model

A toy, made to show a method in minutes on a CPU: a true `CogVideoXPipeline` of CogVideoX's classes that draws one
coloured shape in motion, nine frames at 64×64. It knows nothing beyond that, and figures measured on it say nothing of
the size of an effect on real models.

- Data: clips drawn by code, with captions (`selfnpo_video.demo.world`); no photograph, no person, nothing collected.
- Training: `python tools/build_demo_models.py video`, from random weights; 15 % of the captions dropped.
- Weights: float16 safetensors; the exponential moving average of training.

| figure | value |
| --- | --- |
{rows}
"""
