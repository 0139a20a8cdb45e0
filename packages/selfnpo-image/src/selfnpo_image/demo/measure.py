"""Sampling on the demo world, and what the judges say of the samples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm

from selfnpo_core.evaluation import Interval, Moments, bootstrap, frechet_distance, wilson, win_rate
from selfnpo_image.demo import assets, world
from selfnpo_image.demo.judges import Judge, Oracle, correct


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of every arm: labels (N, 7), their captions and one seed each."""

    labels: Tensor
    prompts: list[str]
    seeds: list[int]

    @classmethod
    def draw(cls, count: int, seed: int) -> Task:
        """`count` random captions with seeds of their own; another `seed` shares nothing with this one."""
        generator = torch.Generator().manual_seed(seed)
        labels = world.draw_labels(count, generator)
        seeds = [seed * 1_000_000 + i for i in range(count)]
        return cls(labels=labels, prompts=world.draw_captions(labels, generator), seeds=seeds)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures (N, 3, 64, 64) uint8, seconds spent, and rows that passed through the UNet."""

    pictures: Tensor
    seconds: float
    forward_rows: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the judges see: features (N, 64), right (N, 7) bool by attribute, preference (N,)."""

    features: Tensor
    right: Tensor
    preference: Tensor

    @property
    def accurate(self) -> Tensor:
        """(N,) bool: everything that the caption names is right."""
        return self.right.all(dim=1)


def sample(
    pipe: StableDiffusionPipeline,
    task: Task,
    *,
    guidance_scale: float,
    steps: int,
    batch: int = 64,
    name: str = "",
) -> Samples:
    """Sample the task with a stock pipeline call; every picture has its own generator, so batches do not matter."""
    pipe.set_progress_bar_config(disable=True)
    pictures, start = [], time.perf_counter()
    with counted_rows(pipe.unet) as rows:
        for first in tqdm(range(0, len(task.prompts), batch), desc=name, unit="batch", leave=False, dynamic_ncols=True):
            part = slice(first, first + batch)
            generators = [torch.Generator().manual_seed(seed) for seed in task.seeds[part]]
            output = pipe(
                task.prompts[part],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=generators,
                output_type="pt",
            )
            pictures.append(world.to_uint8(output.images.float().cpu()))
    return Samples(pictures=torch.cat(pictures), seconds=time.perf_counter() - start, forward_rows=rows[0])


@contextmanager
def judged_by(oracle: Oracle, preference: Judge, reference: Moments) -> Iterator[None]:
    """Use these judges rather than the shipped ones, which are about to be replaced."""
    before = assets.load_oracle, assets.load_judge, assets.reference_moments
    assets.load_oracle, assets.load_judge = lambda: oracle, lambda: preference
    assets.reference_moments = lambda: reference
    try:
        yield
    finally:
        assets.load_oracle, assets.load_judge, assets.reference_moments = before


@contextmanager
def counted_rows(unet: nn.Module) -> Iterator[list[int]]:
    """Counts the rows that pass through the UNet, in the one element of the list that it gives."""
    rows = [0]

    def count(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        rows[0] += len(args[0] if args else kwargs["sample"])

    handle = unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@torch.no_grad()
def judge(pictures: Tensor, labels: Tensor) -> Scores:
    """pictures: (N, 3, 64, 64) uint8, labels: (N, 7)."""
    oracle, preference = assets.load_oracle(), assets.load_judge()
    parts = []
    for some, asked in zip(pictures.split(256), labels.split(256), strict=True):
        x = some.float() / 255
        features = oracle.features(x)
        parts.append((features, correct([head(features) for head in oracle.heads], asked), preference(x, asked)))
    features, right, scores = (torch.cat(column) for column in zip(*parts, strict=True))
    return Scores(features=features, right=right, preference=scores)


def fid(features: Tensor) -> float:
    """Fréchet distance of the oracle's features (N, 64) to those of real pictures."""
    return frechet_distance(Moments.of(features), assets.reference_moments())


@torch.no_grad()
def floor(count: int, seed: int = 11) -> float:
    """FID of `count` real pictures: what the bias of so few leaves, and no sampler can be expected to go under."""
    generator = torch.Generator().manual_seed(seed)
    oracle, features = assets.load_oracle(), []
    for first in range(0, count, 500):
        pictures, _ = world.draw_world(min(500, count - first), generator)
        features.append(oracle.features(pictures.float() / 255))
    return fid(torch.cat(features))


def describe(scores: Scores, *, repeats: int = 100) -> dict[str, Interval | dict[str, float] | float]:
    """One arm's figures: FID with a bootstrap interval, prompt accuracy with Wilson's, accuracy by attribute."""
    count = len(scores.features)
    generator = torch.Generator().manual_seed(0)
    return {
        "fid": bootstrap(lambda rows: fid(scores.features[rows]), count, generator=generator, repeats=repeats),
        "accuracy": wilson(scores.accurate.sum().item(), count),
        "preference": scores.preference.mean().item(),
        "by_attribute": {
            name: round(scores.right[:, k].float().mean().item(), 4) for k, name in enumerate(world.ATTRIBUTES)
        },
    }


def against(scores: Scores, base: Scores, *, repeats: int = 100) -> dict[str, Interval]:
    """Paired comparison of an arm with a base arm at the same prompts and seeds."""
    count = len(scores.features)
    generator = torch.Generator().manual_seed(0)
    return {
        "fid_change": bootstrap(
            lambda rows: fid(scores.features[rows]) - fid(base.features[rows]),
            count,
            generator=generator,
            repeats=repeats,
        ),
        "accuracy_change": bootstrap(
            lambda rows: (scores.accurate[rows].float() - base.accurate[rows].float()).mean().item(),
            count,
            generator=generator,
            repeats=repeats,
        ),
        "win_rate": win_rate(scores.preference, base.preference),
    }


def sweep(
    pipe: StableDiffusionPipeline, *, scales: Sequence[float], count: int, seed: int, steps: int
) -> dict[str, dict[str, float]]:
    """FID and joint prompt accuracy of plain classifier-free guidance at several scales."""
    task, table = Task.draw(count, seed), {}
    for scale in scales:
        scores = judge(
            sample(pipe, task, guidance_scale=scale, steps=steps, name=f"scale {scale:g}").pictures,
            task.labels,
        )
        table[f"{scale:g}"] = {
            "fid": round(fid(scores.features), 2),
            "accuracy": round(scores.accurate.float().mean().item(), 4),
        }
    return table
