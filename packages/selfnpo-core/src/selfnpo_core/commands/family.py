"""What a family of models brings to the commands."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from selfnpo_core.models.backbone import Backbone
from selfnpo_core.models.sources import Source
from selfnpo_core.training.recipe import Presets, Recipe
from selfnpo_core.weights.npo_folder import Npo

if TYPE_CHECKING:
    from selfnpo_core.weights.exporting import KohyaFiles
    from selfnpo_core.weights.offsets import Lora


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a distribution brings to the command."""

    program: str
    """Name of its command line."""
    presets: Callable[[str | None], Presets]
    """Presets of a model by the name its user gave it."""
    source: Callable[[str, str | None], Source]
    """What --model and --model-config stand for."""
    prompts: Callable[[str, str], list[str]]
    """(file or `builtin`, model) → prompts."""
    backbone: Callable[[Source, Recipe, torch.dtype, str], Backbone]
    """(source, recipe, dtype of the base, device) → the model, loaded."""
    sketch: Callable[[Source, Recipe, torch.dtype], Backbone | None] | None = None
    """The model without weights, so that sizes and memory are checked before any are read or fetched; `None` where its
    configuration is not known yet."""
    kohya: "Callable[[Lora, Npo, Source, float, float, str], KohyaFiles] | None" = None
    """(LoRA, negative weights, base, beta, guidance scale, file name) → tensors in kohya's names, and a workflow."""
