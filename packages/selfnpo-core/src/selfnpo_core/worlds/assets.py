"""The files that ship with a demo model: its diffusers folder, its judges, the statistics of real data, its card."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.evaluation import Moments, frechet_distance
from selfnpo_core.system.files import write_tensors, write_text
from selfnpo_core.worlds.building import progress
from selfnpo_core.worlds.things import to_uint8
from selfnpo_core.worlds.world import Judges, World


def model_folder(assets: Path) -> Path:
    """The diffusers folder of the shipped model, the `demo` of `--model demo`."""
    folder = assets / "model"
    if not (folder / "model_index.json").is_file():
        raise InputError("the demo model is missing from this installation: make it with tools/build_demo_models.py")
    return folder


def load_judges(assets: Path, oracle: nn.Module, preference: nn.Module) -> Judges:
    """Fill both networks, in float32, from what `write_assets` wrote."""
    for module, name in ((oracle, "oracle"), (preference, "judge")):
        stored, own = load_file(assets / f"{name}.safetensors"), module.state_dict()
        module.load_state_dict({key: value.to(own[key].dtype) for key, value in stored.items()})
        module.eval().requires_grad_(False)
    stored = load_file(assets / "reference.safetensors")
    moments = Moments(
        mean=stored["mean"].double(), covariance=stored["covariance"].double(), count=int(stored["count"].item())
    )
    return Judges(oracle=oracle, preference=preference, reference=moments)


def write_assets(
    assets: Path, pipe: Any, judges: Judges, figures: Mapping[str, Any], card: str, history: str = ""
) -> None:
    """Pipeline folder in float16, judges, reference statistics, card.json, and the card as the model's README.md.

    card: Markdown with places `{history}` for how the weights were made, and `{rows}` for those of `figures` that fit a
        table.
    """
    assets.mkdir(parents=True, exist_ok=True)
    if (assets / "model").exists():
        shutil.rmtree(assets / "model")
    pipe.to(torch.float16).save_pretrained(assets / "model", safe_serialization=True)
    pipe.to(torch.float32)
    for name, module in (("oracle", judges.oracle), ("judge", judges.preference)):
        half = {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}
        write_tensors(assets / f"{name}.safetensors", half)
    moments = judges.reference
    state = {"mean": moments.mean.float(), "covariance": moments.covariance.float()}
    write_tensors(assets / "reference.safetensors", {**state, "count": torch.tensor(moments.count)})
    write_text(assets / "card.json", json.dumps({"schema": 1, **figures}, indent=2) + "\n")
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items() if not isinstance(value, dict))
    more = "\n" + textwrap.indent(textwrap.fill(history, 116), "  ") if history else ""
    write_text(assets / "model" / "README.md", card.format(rows=rows, history=more))


@torch.no_grad()
def reference(world: World, oracle: nn.Module, count: int, seed: int = 7, chunk: int = 100) -> Moments:
    """Moments of the oracle's features of `count` real samples."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for _ in progress(count // chunk, "reference"):
        parts.append(oracle.features(real_batch(world, chunk, generator)[0]))  # type: ignore[operator]
    return Moments.of(torch.cat(parts))


@torch.no_grad()
def reconstruction_distance(
    world: World, vae: nn.Module, oracle: nn.Module, moments: Moments, count: int, seed: int = 8, chunk: int = 25
) -> float:
    """Fréchet distance between real samples and what the autoencoder makes of others."""
    generator, features = torch.Generator().manual_seed(seed), []
    for _ in progress(count // chunk, "reconstruction"):
        again = reconstructed(vae, real_batch(world, chunk, generator)[0])
        features.append(oracle.features(again.float() / 255))  # type: ignore[operator]
    return frechet_distance(Moments.of(torch.cat(features)), moments)


@torch.no_grad()
def reconstructed(vae: nn.Module, samples: Tensor) -> Tensor:
    """What an autoencoder makes of samples (B, 3, …) in [0, 1]: uint8 of the same shape."""
    latents = vae.encode(samples * 2 - 1).latent_dist.mean  # type: ignore[operator]
    return to_uint8(vae.decode(latents).sample / 2 + 0.5)  # type: ignore[operator]


def real_batch(world: World, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh real samples (count, 3, …) in [0, 1], quantised to bytes as stored ones are, and labels."""
    data, labels = world.draw_real(count, generator)
    return data.float() / 255, labels


def refuse_ragged(accuracy: float, reconstruction: float, *, least: float, most: float) -> None:
    """Raise rather than ship a model that draws badly: nothing could be concluded from it."""
    if accuracy < least:
        raise RunError(
            f"joint prompt accuracy {accuracy:.3f} at the best scale is under {least}: train the denoiser for longer"
        )
    if reconstruction > most:
        raise RunError(
            f"the autoencoder's reconstruction distance {reconstruction:.2f} is over {most}: train it for longer"
        )
