"""What a distribution of this project, for pictures or for clips, tells the commands that all of them share.

A module of a family imports click only: a method imports what it needs when it is called, so that `--help` answers at
once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import click

if TYPE_CHECKING:
    import torch

    from selfnpo_core.commands.options import Decorator
    from selfnpo_core.evaluation.run import MetricSet
    from selfnpo_core.models.backbone import Backbone, LoadingBackbone
    from selfnpo_core.models.base import Base
    from selfnpo_core.models.sources import KnownModel
    from selfnpo_core.sampling.medium import ShownMedium
    from selfnpo_core.training.recipe import Presets, Recipe
    from selfnpo_core.weights.exporting import KohyaFiles
    from selfnpo_core.weights.lora_layers import Lora
    from selfnpo_core.weights.npo_folder import Npo
    from selfnpo_core.worlds.world import Demo

Options = Mapping[str, Any]
"""What click made of a command line, by parameter."""
BaseT = TypeVar("BaseT", bound="Base")
JobT = TypeVar("JobT")


class Family(ABC, Generic[BaseT, JobT]):
    """One distribution: its models, its samples, its demo.

    BaseT: its kind of base model. JobT: what `sample` and `compare` are asked to draw.
    """

    program: ClassVar[str]
    """Name of its command line and of its package, such as selfnpo-image."""
    about: ClassVar[str]
    """One sentence, in the program's help."""
    unit: ClassVar[str]
    """What a sample is called: picture, clip."""
    suffix: ClassVar[str]
    """Of a sample's file."""
    models_line: ClassVar[str]
    """Of `models`, in the list of commands."""
    models_help: ClassVar[str]
    models_also: ClassVar[str]
    """Below the table of models."""
    evaluate_help: ClassVar[str]
    made_by_compare: ClassVar[str]
    """What `compare` says that there is now, after their number."""
    options: ClassVar[Mapping[str, Decorator]] = {}
    """Command → click options that this family's has beside those of all."""
    has_kohya: ClassVar[bool] = False
    """Whether LoRAs of this family have a form in kohya's names."""
    recipe_options: ClassVar[Sequence[str]] = ()
    """Those of `train` that are keys of the recipe."""

    @abstractmethod
    def known(self) -> Mapping[str, KnownModel]:
        """Models that go by a name."""

    @abstractmethod
    def row(self, model: Any) -> Mapping[str, str]:
        """A line of `models`, by the heads of its columns."""

    @abstractmethod
    def find(self, name: str, config: str | None) -> BaseT:
        """The base that --model and --model-config stand for, found and looked at once."""

    @abstractmethod
    def prompts(self, name: str, model: str) -> list[str]:
        """Those of a file, or of `builtin`, for a model by the name its user gave it."""

    @abstractmethod
    def presets(self, base: BaseT, name: str | None = None) -> Presets:
        """Settings to train a base with, by default or under one of `selfnpo_core.training.presets.NAMES`."""

    @abstractmethod
    def backbone(self, base: BaseT, recipe: Recipe, dtype: torch.dtype, device: str) -> LoadingBackbone:
        """The model, loaded. dtype: of the base."""

    @abstractmethod
    def sketch(self, base: BaseT, recipe: Recipe, dtype: torch.dtype) -> Backbone | None:
        """The model without weights, so that sizes and memory are checked before any are read or fetched.

        `None` where its configuration is not known yet.
        """

    @abstractmethod
    def plan(self, options: Options) -> JobT:
        """A job of `sample` and `compare` from their options."""

    @abstractmethod
    def sample(self, job: JobT, output: str) -> int:
        """Draw what is missing in the folder; returns how many were drawn."""

    @abstractmethod
    def compare(self, job: JobT, output: str) -> Mapping[str, Any] | None:
        """Draw with and without the negative weights. Returns figures where an oracle knows the model."""

    @abstractmethod
    def medium(self, options: Options) -> ShownMedium:
        """How samples are read and shown, with the family's own options of `evaluate`, `study` and `report`."""

    @abstractmethod
    def metrics(self) -> MetricSet:
        """What can be measured of samples."""

    @abstractmethod
    def demo(self) -> Demo:
        """The shipped model and its world."""

    def kohya(self, lora: Lora, npo: Npo, base: BaseT, beta: float, scale: float, file: str) -> KohyaFiles:
        """Tensors in kohya's names, and a workflow for these settings. Asked only where `has_kohya`."""
        raise AssertionError(f"{self.program} has no kohya format")


AnyFamily = Family[Any, Any]


def family_named(name: str) -> AnyFamily:
    """The family "image" or "video", if its package is installed."""
    try:
        found: AnyFamily = getattr(import_module(f"selfnpo_{name}.family"), name.upper())
    except ModuleNotFoundError as error:
        if error.name != f"selfnpo_{name}":
            raise
        raise click.UsageError(f"--family {name} needs the package selfnpo-{name}: pip install it") from None
    return found
