"""The judges of a demo world as a network of `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfnpo_core.evaluation.metrics import Metric
from selfnpo_core.evaluation.networks import Look, Network
from selfnpo_core.evaluation.samples import Sample
from selfnpo_core.evaluation.weights import library
from selfnpo_core.sampling.medium import Frames
from selfnpo_core.system.files import file_sha256
from selfnpo_core.worlds.world import World, correct

ORACLE = ("accuracy", "preference")
"""What `--metrics oracle` stands for."""


def oracle_network(world: World, assets: Path) -> Network:
    """Prompt accuracy, the judge's preference, and the oracle's features with the shipped moments of real data."""
    wanted = "×".join(map(str, world.shape[1:]))
    frames = world.shape[1] if len(world.shape) == 4 else 1

    def refuses(sample: Sample) -> str | None:
        if sample.shape != (frames, *world.shape[-2:]):
            return f"the demo's judges look at {world.unit}s of {wanted} pixels"
        if sample.prompt is not None and world.parse_caption(sample.prompt) is None:
            return "its prompt is no caption of the demo's world"
        return None

    def load(places: Sequence[Path], device: torch.device) -> Look:
        return lambda samples, prompts: _look(world, samples, prompts)

    return Network(
        name="oracle",
        columns=ORACLE,
        asks=True,
        model=f"the judges of {world.unit}s that ship with {type(world).__module__.partition('.')[0]}",
        preprocessing=f"pixels in [0, 1], {wanted}",
        library=library("torch"),
        load=load,
        reference=lambda: world.judges.reference,
        refuses=refuses,
        batch=128,
        sha256={file: file_sha256(assets / file) for file in ("oracle.safetensors", "judge.safetensors")},
    )


def _look(world: World, samples: Sequence[Frames], prompts: Sequence[str]) -> Tensor:
    """What the judges say; of a reference sample, which has no prompt, only the features mean anything."""
    x = torch.from_numpy(np.stack(samples)).permute(0, 4, 1, 2, 3).reshape(len(samples), *world.shape) / 255
    unnamed = [-1] * len(world.attributes)
    parsed = [world.parse_caption(text) for text in prompts]
    labels = torch.tensor([unnamed if row is None else row for row in parsed])
    features = world.judges.oracle.features(x)  # type: ignore[operator]
    right = correct([head(features) for head in world.judges.oracle.heads], labels).all(dim=1)  # type: ignore[union-attr]
    asked = [i for i, row in enumerate(parsed) if row is not None]
    liked = torch.zeros(len(samples))
    if asked:
        liked[asked] = world.judges.preference(x[asked], labels[asked])
    return torch.cat([torch.stack([right.float(), liked], dim=1), features], dim=1)


def oracle_metrics(network: Network) -> list[Metric]:
    return [
        Metric(name="accuracy", kind="proportion", network=network),
        Metric(name="preference", kind="score", network=network),
    ]
