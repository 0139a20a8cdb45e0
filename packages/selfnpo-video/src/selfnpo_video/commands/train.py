"""`train`: negative weights from prompts only."""

from typing import TYPE_CHECKING, Any

import click

from selfnpo_core.commands.options import set_key, train_options
from selfnpo_video.commands.sample import ATTENTION

if TYPE_CHECKING:
    import torch

    from selfnpo_core.commands.family import Family
    from selfnpo_core.models.sources import Source
    from selfnpo_core.training import Recipe
    from selfnpo_video.cogvideox import CogVideoX


@click.command(help="Train negative weights. The result is RUN/npo; --resume goes on from RUN's last checkpoint.")
@train_options
@click.option("--attention", type=ATTENTION, help="What computes attention. Default: the recipe's, auto.")
def train(attention: str | None, **options: Any) -> None:
    from selfnpo_core.commands.train import run_train

    if attention is not None:
        options["overrides"] = (*options["overrides"], set_key("attention", attention))
    run_train(family(), options)


def family() -> "Family":
    """What the command needs to know of video models."""
    from selfnpo_core.commands.family import Family
    from selfnpo_video.models import find_source
    from selfnpo_video.prompts import load_prompts
    from selfnpo_video.recipes import presets_for

    return Family(
        program="selfnpo-video",
        presets=presets_for,
        source=find_source,
        prompts=load_prompts,
        backbone=_backbone,
        sketch=_sketch,
    )


def _backbone(source: "Source", recipe: "Recipe", dtype: "torch.dtype", device: str) -> "CogVideoX":
    from selfnpo_video.cogvideox import CogVideoX

    return CogVideoX(source, frames=recipe.frames, height=recipe.height, width=recipe.width, dtype=dtype, device=device)


def _sketch(source: "Source", recipe: "Recipe", dtype: "torch.dtype") -> "CogVideoX | None":
    from selfnpo_video.cogvideox import CogVideoX
    from selfnpo_video.models import KNOWN

    size = {"frames": recipe.frames, "height": recipe.height, "width": recipe.width}
    if source.kind == "folder":
        return CogVideoX.sketch(source, **size, dtype=dtype)
    known = next((model for model in KNOWN.values() if source.name in (model.name, model.hub_id)), None)
    return None if known is None else CogVideoX.sketch(known.name, **size, dtype=dtype)
