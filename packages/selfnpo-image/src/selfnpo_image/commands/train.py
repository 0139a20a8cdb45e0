"""`train`: negative weights from prompts only."""

from typing import TYPE_CHECKING, Any

import click

from selfnpo_core.commands.options import train_options
from selfnpo_core.errors import InputError

if TYPE_CHECKING:
    import torch

    from selfnpo_core.commands.family import Family
    from selfnpo_core.models.sources import Source
    from selfnpo_core.training import Recipe
    from selfnpo_image.backbone import ImageBackbone


@click.command(help="Train negative weights. The result is RUN/npo; --resume goes on from RUN's last checkpoint.")
@train_options
def train(**options: Any) -> None:
    from selfnpo_core.commands.train import run_train

    run_train(family(), options)


def family() -> "Family":
    """What the command needs to know of image models."""
    from selfnpo_core.commands.family import Family
    from selfnpo_image import kohya
    from selfnpo_image.models import find_source
    from selfnpo_image.prompts import load_prompts
    from selfnpo_image.recipes import presets_for

    return Family(
        program="selfnpo-image",
        presets=presets_for,
        source=find_source,
        prompts=load_prompts,
        backbone=_backbone,
        sketch=_sketch,
        kohya=kohya.files,
    )


def _backbone(source: "Source", recipe: "Recipe", dtype: "torch.dtype", device: str) -> "ImageBackbone":
    from selfnpo_image.families import backbone_of
    from selfnpo_image.loading import kind_of

    _check_frames(source, recipe)
    made = backbone_of(kind_of(source).name)
    return made(source, height=recipe.height, width=recipe.width, dtype=dtype, device=device)


def _sketch(source: "Source", recipe: "Recipe", dtype: "torch.dtype") -> "ImageBackbone | None":
    from selfnpo_image.families import backbone_of
    from selfnpo_image.loading import known_configs

    _check_frames(source, recipe)
    family, configs = known_configs(source)
    if configs is None:
        return None
    return backbone_of(family).sketch(source.name, configs, height=recipe.height, width=recipe.width, dtype=dtype)


def _check_frames(source: "Source", recipe: "Recipe") -> None:
    if recipe.frames is not None:
        raise InputError(f"frames is {recipe.frames}, but {source.name} makes pictures: leave it out")
