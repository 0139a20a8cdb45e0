"""Pictures of a stock pipeline that is loaded. Every picture has its own generator, so its batch does not matter."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from selfnpo_core.sampling import job
from selfnpo_image.kinds import sizeless

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings(job.Settings):
    """How pictures are drawn. height, width: pixels; None is the model's own."""

    height: int | None = None
    width: int | None = None
    batch_size: int = 8


@torch.no_grad()
def draw(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    *,
    embeddings: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[int, Image]]:
    """Index and picture, in order. The pipeline is called as it is, a batch at a time.

    embeddings: as for `draw_latents`, for a pipeline without text encoders.
    """
    pipe.set_progress_bar_config(disable=True)
    height, width = _sides(pipe, settings)
    for start in range(0, len(prompts), settings.batch_size):
        part = slice(start, min(start + settings.batch_size, len(prompts)))
        texts, negative_prompt = list(prompts[part]), settings.negative_prompt
        told: Mapping[str, Any] = {
            "prompt": texts,
            "negative_prompt": None if negative_prompt is None else [negative_prompt] * len(texts),
        }
        output = pipe(
            **(told if embeddings is None else _told(embeddings, part)),
            height=height,
            width=width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
        )
        for offset, picture in enumerate(output.images):
            if picture.getextrema() == ((0, 0),) * 3:
                log.warning("the picture of seed %d is all black: try another dtype", seeds[start + offset])
            yield start + offset, picture


@torch.no_grad()
def draw_latents(pipe: Any, embeddings: Mapping[str, Tensor], seeds: Sequence[int], settings: Settings) -> Tensor:
    """(N, C, h, w) float32, undecoded, in host memory, by a pipeline without text encoders.

    embeddings: by the pipeline's argument for the positive branch, (N + 1, …), of the prompts and the null prompt.
    """
    pipe.set_progress_bar_config(disable=True)
    made = []
    for start in range(0, len(seeds), settings.batch_size):
        part = slice(start, min(start + settings.batch_size, len(seeds)))
        latents = pipe(
            **_told(embeddings, part),
            height=settings.height,
            width=settings.width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            output_type="latent",
        ).images
        made.append(latents.float().cpu())
    return torch.cat(made)


def _told(embeddings: Mapping[str, Tensor], part: slice) -> dict[str, Tensor]:
    """A pipeline's arguments for both branches of some prompts."""
    told: dict[str, Tensor] = {}
    for name, rows in embeddings.items():
        told |= {name: rows[part], f"negative_{name}": rows[-1:].expand_as(rows[part])}
    return told


def _sides(pipe: Any, settings: Settings) -> tuple[int | None, int | None]:
    """Height and width as they were asked for, the other one too if one was.

    The stock pipelines multiply a list, and one of them takes its own size for both where one is given.
    Raises `InputError` where the model has no size of its own.
    """
    denoiser = "transformer" if hasattr(pipe, "transformer") else "unet"
    size = getattr(pipe, denoiser).config.sample_size
    if settings.height is None and settings.width is None and isinstance(size, int):
        return None, None
    if size is None:
        if settings.height is None or settings.width is None:
            raise sizeless(denoiser, pipe.name_or_path)
        return settings.height, settings.width
    own = [side * pipe.vae_scale_factor for side in ((size, size) if isinstance(size, int) else size)]
    return settings.height or own[0], settings.width or own[1]
