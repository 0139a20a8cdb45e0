"""What `sample` and `compare` draw: a job from the command line's options, and its pictures in a folder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers

from selfnpo_core.errors import InputError
from selfnpo_core.models.lengths import say_what_is_cut
from selfnpo_core.models.sources import Source
from selfnpo_core.sampling import job, preference
from selfnpo_core.sampling.options import Negative, dtype_of, negative_prompt_of, scale_of
from selfnpo_core.sampling.preference import Preference, Prepared, Whole, prediction_of, with_preference
from selfnpo_core.system.devices import DTYPES
from selfnpo_image.base import ImageBase
from selfnpo_image.drawing import Settings, draw
from selfnpo_image.families import find_base, look
from selfnpo_image.kinds import sizeless
from selfnpo_image.loading import load_pipeline
from selfnpo_image.models import defaults, find_source
from selfnpo_image.prompts import load_prompts
from selfnpo_image.shipped import PREFERRED


@dataclass(frozen=True, kw_only=True)
class Job(job.Job[ImageBase, Settings]):
    """Everything that `sample` and `compare` were asked to draw."""

    def load(self) -> Prepared:
        base = self.base
        pipe = load_pipeline(base, dtype=DTYPES[self.dtype])
        say_what_is_cut(self.texts, base.kind.readers(pipe))
        prepared = with_preference(pipe, base.kind.denoiser, self, lambda name: find_preference(name, base))
        return replace(prepared, pipe=pipe.to(self.device))


def plan(options: Mapping[str, Any]) -> Job:
    """A job from the options of the command line (`selfnpo_core.commands.options.sampling_options`)."""
    if not options["model"]:
        raise InputError("--model is missing: give a known name (see `models`), a folder, a file or a hub id")
    shared, config = job.asked(options, load_prompts)  # before anything is asked of a hub
    base = find_base(options["model"], options["model_config"])
    given, network = (options["height"], options["width"]), base.network
    if None in given and network is not None and base.kind.own_sides(network, base.name) is None:
        raise sizeless(base.kind.denoiser, base.name)
    known = defaults(base)
    settings = Settings(
        guidance_scale=scale_of(options, config, known.guidance_scale),
        steps=options["steps"] or known.steps,
        negative_prompt=negative_prompt_of(options, shared["negative"], config),
        height=options["height"],
        width=options["width"],
        batch_size=options["batch_size"] or 8,
    )
    _check_branch(base, shared["negative"], settings.guidance_scale)
    return Job(base=base, settings=settings, dtype=dtype_of(options["dtype"], shared["device"], known.dtype), **shared)


def _check_branch(base: ImageBase, negative: Negative | None, scale: float) -> None:
    """Raise `InputError` for negative weights that would act where a distilled model has nothing."""
    if negative is None or negative.rule.extrapolates or not base.distilled:
        return
    if scale <= 1 or base.kind.call.never_guides_distilled:
        raise InputError(
            f"{base.name} is distilled and runs no negative branch, so that these weights would change nothing: give "
            "--npo-rule neon --npo-weight 1, or draw with the model that it was distilled from"
        )


def sample(asked: Job, output: str | Path) -> int:
    """Draw the job's pictures into a folder; returns how many were drawn now. Those that are there are kept."""
    return draw_into(asked.load(), asked, output)


def draw_into(prepared: Prepared, asked: Job, output: str | Path) -> int:
    """As `sample`, on a pipeline that is loaded already."""
    pipe = prepared.pipe

    def pictures(numbers: Sequence[int]) -> Iterator[tuple[int, job.Write]]:
        prompts, seeds = [asked.prompts[i] for i in numbers], [asked.seeds[i] for i in numbers]
        drawn = draw(pipe, prompts, seeds, asked.settings, kind=asked.base.kind)
        return ((index, picture.save) for index, picture in drawn)

    with asked.negative.attach(pipe, prepared.eta) if asked.negative else nullcontext():
        return job.fill(output, records(asked, pipe), pictures, "picture")


def find_preference(name: str, base: ImageBase) -> Preference:
    """What `--preference` stands for, beside a base: see `selfnpo_core.sampling.preference`."""
    if name == "demo-preferred":
        return Preference(name=name, lora=PREFERRED)
    kind = base.kind

    def whole(source: Source) -> Whole:
        tuned = look(source)
        tuned.must_be(kind)
        pipe = load_pipeline(tuned)
        encoders = {part: getattr(pipe, part) for part in kind.text_encoders}
        return Whole(
            denoiser=getattr(pipe, kind.denoiser),
            prediction_type=prediction_of(pipe.scheduler),
            encoders={part: encoder for part, encoder in encoders.items() if encoder is not None},
        )

    network = getattr(diffusers, kind.network)
    return preference.find(name, network=network, component=kind.denoiser, locate=find_source, whole=whole)


def records(asked: Job, pipe: Any) -> list[dict[str, Any]]:
    """A line of metadata.jsonl a picture."""
    settings = asked.settings
    how = {"steps": settings.steps, "height": settings.height, "width": settings.width}
    return job.records(asked, pipe, suffix="png", how=how)
