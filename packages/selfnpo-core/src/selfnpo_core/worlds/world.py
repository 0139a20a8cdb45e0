"""What an experiment must know of a world, and of the demo model that draws it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selfnpo_core.evaluation import Moments
from selfnpo_core.models.backbone import LoadingBackbone
from selfnpo_core.training.recipe import Presets


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who looks at samples.

    oracle: `features(x)` (N, d), and `heads`, one for each attribute, from features to logits.
    preference: `(x, labels)` → scores (N,); sigmoid(score_a − score_b) is the probability that a is preferred.
    reference: moments of the oracle's features of real data.
    """

    oracle: nn.Module
    preference: nn.Module
    reference: Moments


class World(ABC):
    """Captioned data drawn by code, so that there is no end of it and its labels are exact."""

    unit: ClassVar[str]
    """What a sample is called: picture, clip."""
    distance: ClassVar[str]
    """Key of the Fréchet distance of the oracle's features: fid, fvd."""
    attributes: ClassVar[Mapping[str, Sequence[str]]]
    """Name → values, in the order of the columns of labels (N, attributes) int64; −1 in a label is "not named"."""
    shape: ClassVar[tuple[int, ...]]
    """Of one sample, (3, …, height, width): what the judges take."""

    @abstractmethod
    def draw_labels(self, count: int, generator: torch.Generator) -> Tensor:
        """Random labels (count, attributes)."""

    @abstractmethod
    def draw_captions(self, labels: Tensor, generator: torch.Generator) -> list[str]:
        """A caption for every row."""

    @abstractmethod
    def parse_caption(self, text: str) -> list[int] | None:
        """The labels that a caption names, or None for any other sentence."""

    @abstractmethod
    def draw_real(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Real samples (count, 3, …) uint8 and their labels."""

    @abstractmethod
    def draw_samples(self, pipe: Any, task: Task, *, guidance_scale: float, steps: int, batch: int) -> Iterator[Tensor]:
        """The task's samples (n, 3, …) uint8, batch by batch, by the stock pipeline; each has its own generator."""

    @abstractmethod
    def denoiser(self, pipe: Any) -> nn.Module:
        """The network whose forward passes count."""

    @abstractmethod
    def shipped_judges(self) -> Judges:
        """The judges that ship with the package."""

    @cached_property
    def judges(self) -> Judges:
        """Who judges: the shipped ones, unless others were put here."""
        return self.shipped_judges()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of every arm: labels (N, attributes), their captions and one seed each."""

    labels: Tensor
    prompts: list[str]
    seeds: list[int]

    @classmethod
    def draw(cls, world: World, count: int, seed: int) -> Task:
        """`count` random captions with seeds of their own; another `seed` shares nothing with this one."""
        generator = torch.Generator().manual_seed(seed)
        labels = world.draw_labels(count, generator)
        seeds = [seed * 1_000_000 + i for i in range(count)]
        return cls(labels=labels, prompts=world.draw_captions(labels, generator), seeds=seeds)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A shipped model with its world: everything that `demo` and the results' tables are made of."""

    title: str
    """Of pages and plots; says what the model is."""
    about: str
    """What the shipped model draws, as the end of a sentence."""
    world: World
    presets: Presets
    kind: str
    """What is trained: lora or full."""
    backbone: Callable[[], LoadingBackbone]
    pipeline: Callable[[], Any]
    captions: Callable[[], Sequence[str]]
    """What negative weights are trained with."""
    show: Callable[[Mapping[str, Tensor], Sequence[str], Path], str]
    """(heading → samples, prompts, folder): puts them side by side there; says what it made."""
    steps: int
    scales: Sequence[float]
    samples: int
    batch: int = 64
    preference: Path | None = None
    """A LoRA that tunes the shipped model to its judge's preferences, for the `tuned` arms."""
    perturbed: Sequence[str] = ()
    """Layers of self-attention in the middle of the denoiser, for perturbed-attention guidance."""
    skipped: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Transformer blocks, by the name of their stack, for skip-layer guidance."""


def correct(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Which attributes are right: (B, attributes) bool; those that a caption does not name (−1) count as right."""
    answers = torch.stack([head.argmax(dim=1) for head in logits], dim=1)
    return (answers == labels) | (labels < 0)
