"""Sampling with the stock pipeline. Every picture has its own generator, so its batch does not matter."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import StableDiffusionPipeline
from PIL.Image import Image
from tqdm import tqdm

from selfnpo_core.errors import InputError
from selfnpo_core.sample_folder import SampleFolder, file_sha256, sample_name
from selfnpo_core.training.npo_folder import NpoConfig, find_npo_file, load_npo
from selfnpo_core.training.recipe import Recommended
from selfnpo_image.models import Source, defaults, find_source
from selfnpo_image.prompts import load_prompts
from selfnpo_image.sd15 import DTYPES, best_device, load_pipeline

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How pictures are drawn. guidance_scale: 1 is none."""

    guidance_scale: float
    steps: int
    negative_prompt: str | None = None
    batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class Negative:
    """Negative weights and how they are used; `path` is the weights file itself."""

    path: Path
    beta: float
    alpha: float
    condition: Literal["null", "prompt"]
    other_base: bool = False

    def attach(self, pipe: StableDiffusionPipeline) -> AbstractContextManager[Any]:
        """On the pipeline's negative branch for the duration of a `with` block."""
        from selfnpo_core.adapters import attach_npo

        return attach_npo(
            pipe,
            self.path,
            alpha=self.alpha,
            beta=self.beta,
            condition=self.condition,
            other_base=self.other_base,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that `sample` and `compare` were asked to draw."""

    source: Source
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: Settings
    negative: Negative | None
    dtype: str
    eta: Path | None = None
    """A preference-tuned LoRA, active on both branches."""
    device: torch.device = field(default_factory=best_device)

    def load(self) -> StableDiffusionPipeline:
        pipe = load_pipeline(self.source, dtype=DTYPES[self.dtype]).to(self.device)
        if self.eta is not None:
            load_eta(pipe, self.eta)
        return pipe


def plan(options: Mapping[str, Any]) -> Job:
    """A job from the options of the command line (`selfnpo_core.cli.sampling_options`)."""
    if not options["model"]:
        raise InputError("--model is missing: give a known name (see `models`), a folder, a file or a hub id")
    source = find_source(options["model"], options["model_config"])
    prompts = [text for text in _prompts(options) for _ in range(options["count"])]
    negative, config = _negative(options)
    known, device = defaults(options["model"]), best_device(options["device"])
    scale = options["guidance_scale"]
    if scale is None and config is not None:
        scale = sum(config.recommended.guidance_scale) / 2
    return Job(
        source=source,
        prompts=prompts,
        seeds=[options["seed"] + i for i in range(len(prompts))],
        settings=Settings(
            guidance_scale=known.guidance_scale if scale is None else scale,
            steps=options["steps"] or known.steps,
            negative_prompt=options["negative_prompt"],
            batch_size=options["batch_size"],
        ),
        negative=negative,
        dtype=_dtype(options["dtype"], device),
        eta=None if options["eta"] is None else find_npo_file(options["eta"]),
        device=device,
    )


def sample(job: Job, output: str | Path) -> int:
    """Draw the job's pictures into a folder; returns how many were drawn now. Those that are there are kept."""
    pipe = job.load()
    return draw_into(pipe, job, output)


def draw_into(pipe: StableDiffusionPipeline, job: Job, output: str | Path) -> int:
    """As `sample`, on a pipeline that is loaded already."""
    attached = job.negative.attach(pipe) if job.negative else nullcontext()
    with attached, SampleFolder(output, records(job, pipe)) as folder:
        todo = folder.missing
        if len(todo) < len(job.prompts):
            log.warning("%s: %d pictures are there already", output, len(job.prompts) - len(todo))
        drawn = draw(pipe, [job.prompts[i] for i in todo], [job.seeds[i] for i in todo], job.settings)
        bar = tqdm(drawn, total=len(todo), desc=Path(output).name, unit="picture", disable=not todo)
        for index, picture in bar:
            folder.add(todo[index], picture.save)
    return len(todo)


def load_eta(pipe: StableDiffusionPipeline, file: Path) -> None:
    """Load a LoRA as adapter "eta", active."""
    try:
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="eta")
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{file} cannot be loaded as a LoRA for this model ({detail}): give one made for it") from None


@torch.no_grad()
def draw(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], settings: Settings
) -> Iterator[tuple[int, Image]]:
    """Index and picture, in order. The pipeline is called as it is, a batch at a time."""
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), settings.batch_size):
        part = slice(start, start + settings.batch_size)
        texts = list(prompts[part])
        refused = settings.negative_prompt
        output = pipe(
            texts,
            negative_prompt=None if refused is None else [refused] * len(texts),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
        )
        for offset, picture in enumerate(output.images):
            if picture.getextrema() == ((0, 0),) * 3:
                log.warning("the picture of seed %d is all black: try another dtype", seeds[start + offset])
            yield start + offset, picture


def records(job: Job, pipe: StableDiffusionPipeline) -> list[dict[str, Any]]:
    """A line of metadata.jsonl a picture: all that is needed to draw it again."""
    negative = job.negative
    shared = {
        "negative_prompt": job.settings.negative_prompt,
        "guidance_scale": job.settings.guidance_scale,
        "steps": job.settings.steps,
        "scheduler": type(pipe.scheduler).__name__,
        "model": job.source.name,
        "dtype": job.dtype,
        "eta": None if job.eta is None else str(job.eta),
        "npo": None if negative is None else str(negative.path),
        "npo_sha256": None if negative is None else file_sha256(negative.path),
        "beta": None if negative is None else negative.beta,
        "alpha": None if negative is None else negative.alpha,
        "negative_condition": None if negative is None else negative.condition,
    }
    pairs = enumerate(zip(job.prompts, job.seeds, strict=True))
    return [
        {"file": sample_name(index, seed, "png"), "prompt": prompt, "seed": seed, **shared}
        for index, (prompt, seed) in pairs
    ]


def _prompts(options: Mapping[str, Any]) -> list[str]:
    if options["prompt"] and options["prompts"]:
        raise InputError("--prompt and --prompts are both given: give one of them")
    if not options["prompt"] and not options["prompts"]:
        raise InputError("nothing to draw: give --prompt TEXT, --prompts FILE or --prompts builtin")
    return list(options["prompt"]) or load_prompts(options["prompts"], options["model"])


def _negative(options: Mapping[str, Any]) -> tuple[Negative | None, NpoConfig | None]:
    """What --npo, --beta, --alpha and --negative-condition mean; what is not given is as the weights recommend."""
    if options["npo"] is None:
        for key in ("beta", "alpha", "negative_condition", "other_base"):
            if options[key] not in (None, False):
                raise InputError(f"--{key.replace('_', '-')} needs --npo: give the negative weights, or leave it out")
        return None, None
    npo = load_npo(options["npo"])
    recommended = npo.config.recommended if npo.config else Recommended()
    condition = options["negative_condition"] or (npo.config.negative_condition if npo.config else "null")
    negative = Negative(
        path=npo.path,
        beta=recommended.beta if options["beta"] is None else options["beta"],
        alpha=recommended.alpha if options["alpha"] is None else options["alpha"],
        condition=condition,
        other_base=options["other_base"],
    )
    return negative, npo.config


def _dtype(name: str, device: torch.device) -> str:
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type == "cpu":
        log.warning("fp16 is slow on a CPU, and some layers lack it: fp32 or bf16 is better")
    return name
