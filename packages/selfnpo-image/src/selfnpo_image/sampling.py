"""Sampling with the stock pipeline. Every picture has its own generator, so its batch does not matter."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from tqdm import tqdm

from selfnpo_core.errors import InputError
from selfnpo_core.models.sources import Source
from selfnpo_core.sampling import preference
from selfnpo_core.sampling.options import NO_NEGATIVE, Negative, dtype_of, negative_of, prompts_of, scale_of
from selfnpo_core.sampling.preference import kept_eta, prepare
from selfnpo_core.sampling.sample_folder import SampleFolder, sample_name
from selfnpo_core.system.devices import DTYPES, best_device
from selfnpo_image.loading import find_preference, kind_of, load_pipeline
from selfnpo_image.models import defaults, find_source
from selfnpo_image.prompts import load_prompts

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How pictures are drawn. guidance_scale: 1 is none. height, width: pixels; None is the model's own."""

    guidance_scale: float
    steps: int
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that `sample` and `compare` were asked to draw."""

    source: Source
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: Settings
    negative: Negative | None
    dtype: str
    preference: str | None = None
    """A preference-tuned LoRA or model, on both branches; see `selfnpo_core.sampling.preference`."""
    device: torch.device = field(default_factory=best_device)

    def load(self) -> Any:
        pipe = load_pipeline(self.source, dtype=DTYPES[self.dtype])
        return prepare(pipe, kind_of(self.source).denoiser, self, find_preference).to(self.device)


def plan(options: Mapping[str, Any]) -> Job:
    """A job from the options of the command line (`selfnpo_core.commands.options.sampling_options`)."""
    if not options["model"]:
        raise InputError("--model is missing: give a known name (see `models`), a folder, a file or a hub id")
    source = find_source(options["model"], options["model_config"])
    prompts = [text for text in prompts_of(options, load_prompts) for _ in range(options["count"])]
    negative, config = negative_of(options)
    known, device = defaults(options["model"], source), best_device(options["device"])
    return Job(
        source=source,
        prompts=prompts,
        seeds=[options["seed"] + i for i in range(len(prompts))],
        settings=Settings(
            guidance_scale=scale_of(options, config, known.guidance_scale),
            steps=options["steps"] or known.steps,
            negative_prompt=options["negative_prompt"],
            height=options["height"],
            width=options["width"],
            batch_size=options["batch_size"] or 8,
        ),
        negative=negative,
        dtype=dtype_of(options["dtype"], device, known.dtype),
        preference=options["preference"],
        device=device,
    )


def sample(job: Job, output: str | Path) -> int:
    """Draw the job's pictures into a folder; returns how many were drawn now. Those that are there are kept."""
    pipe = job.load()
    return draw_into(pipe, job, output)


def draw_into(pipe: Any, job: Job, output: str | Path) -> int:
    """As `sample`, on a pipeline that is loaded already."""
    attached = job.negative.attach(pipe, kept_eta(pipe)) if job.negative else nullcontext()
    with attached, SampleFolder(output, records(job, pipe)) as folder:
        todo = folder.missing
        if len(todo) < len(job.prompts):
            log.warning("%s: %d pictures are there already", output, len(job.prompts) - len(todo))
        drawn = draw(pipe, [job.prompts[i] for i in todo], [job.seeds[i] for i in todo], job.settings)
        bar = tqdm(drawn, total=len(todo), desc=Path(output).name, unit="picture", disable=not todo)
        for index, picture in bar:
            folder.add(todo[index], picture.save)
    return len(todo)


@torch.no_grad()
def draw(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> Iterator[tuple[int, Image]]:
    """Index and picture, in order. The pipeline is called as it is, a batch at a time."""
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), settings.batch_size):
        part = slice(start, start + settings.batch_size)
        texts = list(prompts[part])
        refused = settings.negative_prompt
        output = pipe(
            texts,
            negative_prompt=None if refused is None else [refused] * len(texts),
            height=settings.height,
            width=settings.width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
        )
        for offset, picture in enumerate(output.images):
            if picture.getextrema() == ((0, 0),) * 3:
                log.warning("the picture of seed %d is all black: try another dtype", seeds[start + offset])
            yield start + offset, picture


def records(job: Job, pipe: Any) -> list[dict[str, Any]]:
    """A line of metadata.jsonl a picture: all that is needed to draw it again."""
    shared = {
        "negative_prompt": job.settings.negative_prompt,
        "guidance_scale": job.settings.guidance_scale,
        "steps": job.settings.steps,
        "height": job.settings.height,
        "width": job.settings.width,
        "scheduler": type(pipe.scheduler).__name__,
        "model": job.source.name,
        "dtype": job.dtype,
        **preference.record(job.preference),
        **(job.negative.record if job.negative else NO_NEGATIVE),
    }
    pairs = enumerate(zip(job.prompts, job.seeds, strict=True))
    return [
        {"file": sample_name(index, seed, "png"), "prompt": prompt, "seed": seed, **shared}
        for index, (prompt, seed) in pairs
    ]
