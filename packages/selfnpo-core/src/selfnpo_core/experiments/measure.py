"""Sampling in a world, and what its judges say of the samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from selfnpo_core.adapters.hooks import batch_of, forward_of, replace_forward
from selfnpo_core.evaluation import Interval, bootstrap, wilson, win_rate
from selfnpo_core.evaluation.distances import frechet_to
from selfnpo_core.evaluation.intervals import interval_around
from selfnpo_core.worlds.world import Task, World, correct

REPEATS = 100
"""Resamples of an interval."""
CHUNK = 128
"""Samples that are judged at a time."""
Attach = Callable[[Any], AbstractContextManager[object]]
"""Changes a pipeline for the duration of a `with` block."""


@contextmanager
def plain(_pipe: Any) -> Iterator[None]:
    """Classifier-free guidance as it is."""
    yield


@dataclass(frozen=True, kw_only=True)
class DrawnSamples:
    """Samples (N, 3, …) uint8, seconds spent, and rows that passed through the denoiser."""

    data: Tensor
    seconds: float
    forward_rows: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the judges see: features (N, d), right (N, attributes) bool, preference (N,).

    motion: (N,), of clips (`motion_of`). distances: what `resampled` makes of the features, once it was computed.
    """

    features: Tensor
    right: Tensor
    preference: Tensor
    motion: Tensor | None = None
    distances: Tensor | None = None

    @property
    def accurate(self) -> Tensor:
        """(N,) bool: everything that the caption names is right."""
        return self.right.all(dim=1)


def sample(
    world: World,
    pipe: Any,
    task: Task,
    *,
    guidance_scale: float,
    steps: int,
    batch: int = 64,
    name: str = "",
    attach: Attach = plain,
) -> DrawnSamples:
    """Sample the task with stock pipeline calls; every sample has its own generator, so batches do not matter.

    attach: puts an arm's weights, or its rule of guidance, on the pipeline.
    """
    parts = []
    bar = tqdm(total=len(task.prompts), desc=name, unit=world.unit, leave=False, dynamic_ncols=True, disable=not name)
    with counted_rows(world.denoiser(pipe)) as rows, attach(pipe), bar:
        start = time.perf_counter()
        for part in world.draw_samples(pipe, task, guidance_scale=guidance_scale, steps=steps, batch=batch):
            parts.append(part)
            bar.update(len(part))
        seconds = time.perf_counter() - start
    return DrawnSamples(data=torch.cat(parts), seconds=seconds, forward_rows=rows[0])


@contextmanager
def counted_rows(denoiser: nn.Module) -> Iterator[list[int]]:
    """Counts the rows that pass through a denoiser, in the one element of the list that it gives.

    Whatever is put around the denoiser inside of the block is seen through: the rows are those of the network itself.
    """
    rows, run = [0], forward_of(denoiser)

    def forward(*args: Any, **kwargs: Any) -> Any:
        rows[0] += batch_of(args, kwargs)
        return run(*args, **kwargs)

    forward.inside = run  # type: ignore[attr-defined]
    with ExitStack() as undo:
        replace_forward(undo, denoiser, forward)
        yield rows


@torch.no_grad()
def judge(world: World, data: Tensor, labels: Tensor) -> Scores:
    """data: (N, 3, …) uint8, labels: (N, attributes)."""
    oracle, preference = world.judges.oracle, world.judges.preference
    parts = []
    for some, asked in zip(data.split(CHUNK), labels.split(CHUNK), strict=True):
        x = some.float() / 255
        features = oracle.features(x)  # type: ignore[operator]
        parts.append((features, correct([head(features) for head in oracle.heads], asked), preference(x, asked)))  # type: ignore[union-attr]
    features, right, scores = (torch.cat(column) for column in zip(*parts, strict=True))
    return Scores(features=features, right=right, preference=scores, motion=motion_of(data))


def motion_of(data: Tensor) -> Tensor | None:
    """How much moves from frame to frame: (N,), mean |change| of clips (N, 3, F, H, W) in [0, 1]; None of pictures."""
    if data.ndim != 5:
        return None
    return torch.cat([(some.float() / 255).diff(dim=2).abs().flatten(1).mean(1) for some in data.split(CHUNK)])


def distance(world: World, features: Tensor) -> float:
    """Fréchet distance of the oracle's features (N, d) to those of real data."""
    return frechet_to(world.judges.reference, features)


def resampled(world: World, features: Tensor, *, repeats: int = REPEATS) -> Tensor:
    """Distances of features (N, d): (1 + repeats,) float64, the first of all rows, the others of resamples of them.

    The resamples are the same for every N features, so that distances of two arms are paired.
    """
    generator, count = torch.Generator().manual_seed(0), len(features)
    rows = [torch.randint(count, (count,), generator=generator) for _ in range(repeats)]
    found = [distance(world, features), *(distance(world, features[some]) for some in rows)]
    return torch.tensor(found, dtype=torch.float64)


def with_distances(world: World, scores: Scores) -> Scores:
    """Scores that have their distances, which take longest to compute."""
    return scores if scores.distances is not None else replace(scores, distances=resampled(world, scores.features))


def floor(world: World, count: int, seed: int = 11) -> float:
    """Distance of `count` real samples: what the bias of so few leaves, and no sampler can be expected to go under."""
    return distance(world, real_features(world, count, seed))


@torch.no_grad()
def real_features(world: World, count: int, seed: int) -> Tensor:
    """The oracle's features of a fresh draw of real samples: (count, d)."""
    generator, features = torch.Generator().manual_seed(seed), []
    for first in range(0, count, 500):
        data, _ = world.draw_real(min(500, count - first), generator)
        features += [world.judges.oracle.features(some.float() / 255) for some in data.split(CHUNK)]  # type: ignore[operator]
    return torch.cat(features)


def describe(world: World, scores: Scores) -> dict[str, Any]:
    """One arm's figures: distance with a bootstrap interval, prompt accuracy with Wilson's, accuracy by attribute."""
    count = len(scores.features)
    return {
        world.distance: _interval(_distances(world, scores)),
        "accuracy": wilson(scores.accurate.sum().item(), count),
        "preference": scores.preference.mean().item(),
        **({} if scores.motion is None else {"motion": scores.motion.mean().item()}),
        "by_attribute": {
            name: round(scores.right[:, k].float().mean().item(), 4) for k, name in enumerate(world.attributes)
        },
    }


def against(world: World, scores: Scores, base: Scores) -> dict[str, Interval]:
    """Paired comparison of an arm with a base arm at the same prompts and seeds."""
    count, generator = len(scores.features), torch.Generator().manual_seed(0)
    return {
        f"{world.distance}_change": _interval(_distances(world, scores) - _distances(world, base)),
        "accuracy_change": bootstrap(
            lambda rows: (scores.accurate[rows].float() - base.accurate[rows].float()).mean().item(),
            count,
            generator=generator,
            repeats=REPEATS,
        ),
        "win_rate": win_rate(scores.preference, base.preference),
    }


def _distances(world: World, scores: Scores) -> Tensor:
    found = with_distances(world, scores).distances
    assert found is not None
    return found


def _interval(figures: Tensor) -> Interval:
    """Of all rows, and of resamples."""
    return interval_around(figures[0].item(), figures[1:])


def motion_ratio(scores: Scores, base: Scores) -> Interval | None:
    """How much moves in an arm's clips, over what does in a base arm's."""
    ours, theirs = scores.motion, base.motion
    if ours is None or theirs is None:
        return None
    generator = torch.Generator().manual_seed(0)
    return bootstrap(
        lambda rows: (ours[rows].mean() / theirs[rows].mean()).item(), len(ours), generator=generator, repeats=REPEATS
    )


def excess_ratio(world: World, scores: Scores, base: Scores, real: Tensor) -> Interval:
    """What an arm's distance is above that of real samples, over what a base arm's is: 1 is no change, 0 is real.

    real: `resampled` distances of as many real samples. All three are of resamples, so that their bias is in all of
    them, and the chance in the real samples is in the interval.
    """
    return _interval((_distances(world, scores) - real) / (_distances(world, base) - real))


ENOUGH = 128
"""Below this many samples a Fréchet distance says nothing, so none is given."""


def compare_arms(world: World, labels: Tensor, without: Tensor, with_npo: Tensor) -> dict[str, Any]:
    """Figures of two arms of samples (N, 3, …) uint8 of the same prompts and seeds, for `metrics.json`."""
    arms = [judge(world, data, labels) for data in (without, with_npo)]
    enough = len(labels) >= ENOUGH
    arms = [with_distances(world, scores) for scores in arms] if enough else arms
    figures: dict[str, Any] = {"judged": len(labels)}
    for name, scores in zip(("without", "with"), arms, strict=True):
        if enough:
            told = describe(world, scores).items()
            figures[name] = {key: value for key, value in told if key not in ("preference", "motion")}
        else:
            figures[name] = {"accuracy": wilson(scores.accurate.sum().item(), len(labels))}
    if enough:
        figures["change"] = against(world, arms[1], arms[0])
    else:
        figures["change"] = {"win_rate": win_rate(arms[1].preference, arms[0].preference)}
    return figures


def compare_prompts(
    world: World, prompts: Sequence[str], without: Sequence[Tensor], with_npo: Sequence[Tensor]
) -> dict[str, Any]:
    """`compare_arms` of samples (3, …, H, W) of any prompts; those that are no captions are left out."""
    parsed = [world.parse_caption(text) for text in prompts]
    kept = [index for index, labels in enumerate(parsed) if labels is not None]
    if not kept:
        return {"judged": 0, "note": "no prompt is a caption of the demo's world"}
    shapes = {tuple(arm[index].shape) for arm in (without, with_npo) for index in kept}
    if shapes != {world.shape}:
        sizes, wanted = ("×".join(map(str, shape[1:])) for shape in (min(shapes), world.shape))
        return {"judged": 0, "note": f"the demo's judges look at {world.unit}s of {wanted} pixels, not {sizes}"}
    labels = torch.tensor([parsed[index] for index in kept])
    return compare_arms(world, labels, *(torch.stack([arm[index] for index in kept]) for arm in (without, with_npo)))


def sweep(
    world: World, pipe: Any, *, scales: Sequence[float], count: int, seed: int, steps: int
) -> dict[str, dict[str, float]]:
    """Distance and prompt accuracy of plain classifier-free guidance at several scales."""
    task, table = Task.draw(world, count, seed), {}
    for scale in scales:
        drawn = sample(world, pipe, task, guidance_scale=scale, steps=steps, name=f"scale {scale:g}")
        scores = judge(world, drawn.data, task.labels)
        table[f"{scale:g}"] = {
            world.distance: round(distance(world, scores.features), 2),
            "accuracy": round(scores.accurate.float().mean().item(), 4),
            **{name: round(scores.right[:, k].float().mean().item(), 4) for k, name in enumerate(world.attributes)},
        }
    return table
