"""What `sample` and `compare` of every family are asked to draw, how a folder is filled, and what is written of it."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from tqdm import tqdm

from selfnpo_core.models.base import Base
from selfnpo_core.sampling import preference
from selfnpo_core.sampling.options import NO_NEGATIVE, Negative, negative_of, prompts_of
from selfnpo_core.sampling.sample_folder import SampleFolder, sample_name
from selfnpo_core.system.devices import best_device
from selfnpo_core.weights.npo_folder import NpoConfig

log = logging.getLogger(__name__)
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How samples are drawn. guidance_scale: 1 is none."""

    guidance_scale: float
    steps: int
    negative_prompt: str | None = None
    batch_size: int = 1


BaseT = TypeVar("BaseT", bound=Base)
SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True, kw_only=True)
class Job(Generic[BaseT, SettingsT]):
    """Everything that `sample` and `compare` were asked to draw. A family's own kind of job says more."""

    base: BaseT
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: SettingsT
    negative: Negative | None
    dtype: str
    preference: str | None = None
    """A preference-tuned LoRA or model, on both branches; see `selfnpo_core.sampling.preference`."""
    device: torch.device = field(default_factory=best_device)

    @property
    def texts(self) -> list[str]:
        """All that text encoders are given, once."""
        negative = self.settings.negative_prompt
        return list(dict.fromkeys([*self.prompts, *([] if negative is None else [negative])]))


def asked(
    options: Mapping[str, Any], load_prompts: Callable[[str, str], list[str]]
) -> tuple[dict[str, Any], NpoConfig | None]:
    """What the options that all families share say of a job, and what the negative weights say of themselves.

    load_prompts: (file or `builtin`, model) → prompts.
    """
    prompts = [text for text in prompts_of(options, load_prompts) for _ in range(options["count"])]
    negative, config = negative_of(options)
    seeds = [options["seed"] + i for i in range(len(prompts))]
    return {
        "prompts": prompts,
        "seeds": seeds,
        "negative": negative,
        "preference": options["preference"],
        "device": best_device(options["device"]),
    }, config


def records(
    job: Job[Any, Any],
    pipe: Any,
    *,
    suffix: str,
    how: Mapping[str, Any],
    given: Sequence[Mapping[str, Any]] | None = None,
) -> list[Record]:
    """A line of metadata.jsonl a sample: all that is needed to draw it again.

    how: the family's settings beside the negative prompt and the scale. given: of each sample, what else the model
    was given.
    """
    shared = {
        "negative_prompt": job.settings.negative_prompt,
        "guidance_scale": job.settings.guidance_scale,
        **how,
        "scheduler": type(pipe.scheduler).__name__,
        "model": job.base.name,
        "dtype": job.dtype,
        **preference.record(job.preference),
        **(job.negative.record if job.negative else NO_NEGATIVE),
    }
    return [
        {"file": sample_name(index, seed, suffix), "prompt": prompt, "seed": seed, **own, **shared}
        for index, (prompt, seed, own) in enumerate(
            zip(job.prompts, job.seeds, given or [{}] * len(job.prompts), strict=True)
        )
    ]


Write = Callable[[Path], object]
"""Puts a sample into the file it is given."""


def fill(
    output: str | Path,
    wanted: Sequence[Record],
    draw: Callable[[Sequence[int]], Iterator[tuple[int, Write]]],
    unit: str,
) -> int:
    """Draw what is missing of the wanted samples into a folder; returns how many were drawn now.

    draw: numbers of samples → index among these and writer. unit: what a sample is called.
    """
    with SampleFolder(output, wanted) as folder:
        todo = folder.missing
        if len(todo) < len(wanted):
            log.warning("%s: %d %ss are there already", output, len(wanted) - len(todo), unit)
        for index, write in tqdm(draw(todo), total=len(todo), desc=Path(output).name, unit=unit, disable=not todo):
            folder.add(todo[index], write)
    return len(todo)
