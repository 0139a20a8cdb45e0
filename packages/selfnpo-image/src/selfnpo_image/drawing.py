"""Pictures of a stock pipeline that is loaded. Every picture has its own generator, so its batch does not matter."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from selfnpo_core.sampling import job
from selfnpo_image.kinds import Kind, sizeless

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings(job.Settings):
    """How pictures are drawn. height, width: pixels; None is the model's own."""

    height: int | None = None
    width: int | None = None
    batch_size: int = 8


Told = Callable[[slice], Mapping[str, Any]]
"""A pipeline's arguments for both branches of some of the prompts, of one without text encoders."""


@torch.no_grad()
def draw(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, *, kind: Kind, told: Told | None = None
) -> Iterator[tuple[int, Image]]:
    """Index and picture, in order. The pipeline is called as it is, a batch at a time.

    kind: the pipeline's. told: what it is told in place of the prompts' texts.
    """
    pipe.set_progress_bar_config(disable=True)
    sides = _sides(pipe, settings, kind)
    for start in range(0, len(prompts), settings.batch_size):
        part = slice(start, min(start + settings.batch_size, len(prompts)))
        words = told(part) if told else _texts(pipe, prompts[part], settings, kind)
        output = pipe(**words, **_how(sides, seeds[part], settings, kind))
        for offset, picture in enumerate(output.images):
            if picture.getextrema() == ((0, 0),) * 3:
                log.warning("the picture of seed %d is all black: try another dtype", seeds[start + offset])
            yield start + offset, picture


@torch.no_grad()
def draw_latents(pipe: Any, told: Told, seeds: Sequence[int], settings: Settings, *, kind: Kind) -> Tensor:
    """(N, C, h, w) float32, undecoded, in host memory, by a pipeline without text encoders."""
    pipe.set_progress_bar_config(disable=True)
    made = []
    for start in range(0, len(seeds), settings.batch_size):
        part = slice(start, min(start + settings.batch_size, len(seeds)))
        how = _how((settings.height, settings.width), seeds[part], settings, kind)
        made.append(kind.call.latents(pipe, {**told(part), **how}).float().cpu())
    return torch.cat(made)


def _texts(pipe: Any, prompts: Sequence[str], settings: Settings, kind: Kind) -> dict[str, Any]:
    """A pipeline's arguments for both branches."""
    null = settings.negative_prompt
    if null is None and settings.guidance_scale > 1:
        null = kind.call.null
    return {"prompt": list(prompts), **({} if null is None else kind.call.negative(pipe, [null] * len(prompts)))}


def _how(sides: tuple[int | None, int | None], seeds: Sequence[int], settings: Settings, kind: Kind) -> dict[str, Any]:
    """A pipeline's other arguments."""
    height, width = sides
    return {
        "height": height,
        "width": width,
        "num_inference_steps": settings.steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        **kind.call.guidance(settings.guidance_scale),
    }


def _sides(pipe: Any, settings: Settings, kind: Kind) -> tuple[int | None, int | None]:
    """Height and width as they were asked for, the other one too if one was.

    The stock pipelines multiply a list, and one of them takes its own size for both where one is given.
    Raises `InputError` where the model has no size of its own.
    """
    if settings.height is not None and settings.width is not None:
        return settings.height, settings.width
    config = getattr(pipe, kind.denoiser).config
    if settings.height is None and settings.width is None and isinstance(config.get("sample_size"), int):
        return None, None
    own = kind.own_sides(config, pipe.name_or_path)
    if own is None:
        raise sizeless(kind.denoiser, pipe.name_or_path)
    height, width = (side * kind.pixels(pipe.vae.config) for side in own)
    return settings.height or height, settings.width or width
