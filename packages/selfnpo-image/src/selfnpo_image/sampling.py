"""Sampling pictures with a stock pipeline, with negative weights or without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from selfnpo_core.adapters import attach_npo
from selfnpo_core.cli import SampleFolder, file_hash, numbered
from selfnpo_core.training.npo_folder import find_npo_file

if TYPE_CHECKING:
    from PIL.Image import Image

Condition = Literal["null", "prompt"]


def use_npo(
    pipe: StableDiffusionPipeline,
    npo: str | None,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    condition: Condition | None = None,
) -> AbstractContextManager[Any]:
    """A context in which the negative branch uses the weights of a run, its npo folder or a file; none for `None`.

    What is left `None` is as the weights' own configuration recommends.
    """
    if npo is None:
        return nullcontext()
    given = {"alpha": alpha, "beta": beta, "condition": condition}
    return attach_npo(pipe, npo, **{key: value for key, value in given.items() if value is not None})


def pictures(
    pipe: StableDiffusionPipeline,
    tasks: Sequence[tuple[int, str]],
    *,
    guidance_scale: float,
    steps: int,
    batch_size: int,
    negative_prompt: str | None = None,
    name: str = "sample",
) -> Iterator[Image]:
    """A picture for each (seed, prompt), in order. Every picture has its own generator, whatever its batch."""
    pipe.set_progress_bar_config(disable=True)
    with tqdm(total=len(tasks), desc=name, unit="picture", disable=not tasks) as bar:
        for first in range(0, len(tasks), batch_size):
            some = tasks[first : first + batch_size]
            images = pipe(
                [prompt for _, prompt in some],
                negative_prompt=None if negative_prompt is None else [negative_prompt] * len(some),
                guidance_scale=guidance_scale,
                num_inference_steps=steps,
                generator=[torch.Generator().manual_seed(seed) for seed, _ in some],
            ).images
            bar.update(len(some))
            yield from images


def sample_settings(
    pipe: StableDiffusionPipeline, model: str, npo: str | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What metadata.jsonl says of every picture beside its prompt and seed."""
    return {
        "model": model,
        "npo": None if npo is None else file_hash(find_npo_file(npo)),
        "scheduler": type(pipe.scheduler).__name__,
        **settings,
    }


def sample_to_folder(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    output: Path,
    *,
    seed: int,
    settings: Mapping[str, Any],
    guidance_scale: float,
    steps: int,
    batch_size: int,
    negative_prompt: str | None,
) -> int:
    """Write 00000-SEED.png … and metadata.jsonl; what is there already is skipped. Returns how many were drawn."""
    folder = SampleFolder(output, settings)
    tasks = [
        (f"{i:05d}-{task_seed}.png", (task_seed, prompt))
        for i, (task_seed, prompt) in enumerate(numbered(prompts, seed))
    ]
    missing = [(name, task) for name, task in tasks if not folder.is_done(name, task[1], task[0])]
    drawn = pictures(
        pipe,
        [task for _, task in missing],
        guidance_scale=guidance_scale,
        steps=steps,
        batch_size=batch_size,
        negative_prompt=negative_prompt,
    )
    for (name, (task_seed, prompt)), picture in zip(missing, drawn, strict=True):
        partial = output / (name + ".partial")
        picture.save(partial, format="PNG")
        partial.replace(output / name)
        folder.add(name, prompt, task_seed)
    return len(missing)
