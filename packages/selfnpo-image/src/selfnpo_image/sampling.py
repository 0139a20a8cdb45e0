"""What `sample` and `compare` draw: a job from the command line's options, and its pictures in a folder."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from tqdm import tqdm

from selfnpo_core.errors import InputError
from selfnpo_core.models.sources import Source
from selfnpo_core.sampling import preference
from selfnpo_core.sampling.options import NO_NEGATIVE, Negative, dtype_of, negative_of, prompts_of, scale_of
from selfnpo_core.sampling.preference import Preference, kept_eta, prepare
from selfnpo_core.sampling.sample_folder import SampleFolder, sample_name
from selfnpo_core.system.devices import DTYPES, best_device
from selfnpo_image.base import ImageBase
from selfnpo_image.drawing import Settings, draw
from selfnpo_image.families import find_base, look
from selfnpo_image.loading import load_pipeline
from selfnpo_image.models import defaults, find_source
from selfnpo_image.prompts import load_prompts
from selfnpo_image.shipped import PREFERRED

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that `sample` and `compare` were asked to draw."""

    base: ImageBase
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: Settings
    negative: Negative | None
    dtype: str
    preference: str | None = None
    """A preference-tuned LoRA or model, on both branches; see `selfnpo_core.sampling.preference`."""
    device: torch.device = field(default_factory=best_device)

    def load(self) -> Any:
        base = self.base
        pipe = load_pipeline(base, dtype=DTYPES[self.dtype])
        return prepare(pipe, base.kind.denoiser, self, lambda name, _: find_preference(name, base)).to(self.device)


def plan(options: Mapping[str, Any]) -> Job:
    """A job from the options of the command line (`selfnpo_core.commands.options.sampling_options`)."""
    if not options["model"]:
        raise InputError("--model is missing: give a known name (see `models`), a folder, a file or a hub id")
    base = find_base(options["model"], options["model_config"])
    prompts = [text for text in prompts_of(options, load_prompts) for _ in range(options["count"])]
    negative, config = negative_of(options)
    known, device = defaults(base), best_device(options["device"])
    return Job(
        base=base,
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


def find_preference(name: str, base: ImageBase) -> Preference:
    """What `--preference` stands for, beside a base: see `selfnpo_core.sampling.preference`."""
    if name == "demo-preferred":
        return Preference(name=name, lora=PREFERRED)
    kind = base.kind

    def whole(source: Source) -> Any:
        tuned = look(source)
        tuned.must_be(kind)
        return getattr(load_pipeline(tuned), kind.denoiser)

    network = getattr(diffusers, kind.network)
    return preference.find(name, network=network, component=kind.denoiser, locate=find_source, whole=whole)


def records(job: Job, pipe: Any) -> list[dict[str, Any]]:
    """A line of metadata.jsonl a picture: all that is needed to draw it again."""
    shared = {
        "negative_prompt": job.settings.negative_prompt,
        "guidance_scale": job.settings.guidance_scale,
        "steps": job.settings.steps,
        "height": job.settings.height,
        "width": job.settings.width,
        "scheduler": type(pipe.scheduler).__name__,
        "model": job.base.name,
        "dtype": job.dtype,
        **preference.record(job.preference),
        **(job.negative.record if job.negative else NO_NEGATIVE),
    }
    pairs = enumerate(zip(job.prompts, job.seeds, strict=True))
    return [
        {"file": sample_name(index, seed, "png"), "prompt": prompt, "seed": seed, **shared}
        for index, (prompt, seed) in pairs
    ]
