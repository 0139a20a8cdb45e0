"""Image models as the commands know them. What a command needs is imported when it is called."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import click

from selfnpo_core.commands.family import Family, Options
from selfnpo_core.commands.options import Decorator, stack
from selfnpo_core.errors import InputError

if TYPE_CHECKING:
    import torch

    from selfnpo_core.evaluation.run import MetricSet
    from selfnpo_core.models.sources import KnownModel
    from selfnpo_core.sampling.medium import ShownMedium
    from selfnpo_core.training.recipe import Presets, Recipe
    from selfnpo_core.weights.exporting import KohyaFiles
    from selfnpo_core.weights.lora_layers import Lora
    from selfnpo_core.weights.npo_folder import Npo
    from selfnpo_core.worlds.world import Demo
    from selfnpo_image.backbone import ImageBackbone
    from selfnpo_image.base import ImageBase
    from selfnpo_image.sampling import Job

log = logging.getLogger(__name__)


class ImageFamily(Family["ImageBase", "Job"]):
    """SD1.5, SDXL, SD3, Qwen-Image, Z-Image, FLUX.2 [klein], and a demo."""

    program = "selfnpo-image"
    about = "Self-NPO for image diffusion models: negative weights, trained from prompts only."
    unit, suffix = "picture", "png"
    made_by_compare = "pairs and sheet.png"
    has_kohya = True
    models_line = "Known models: hub id, licence, size, prediction type, dtype."
    models_help = "List the models that go by a name. Any other model of these families works too."
    models_also = (
        "Also: a hub id owner/name or a diffusers folder of these families, or a .safetensors file of SD1.5, SDXL.\n"
        "Distilled models run no negative branch: what `train` makes of those above is for Neon (--npo-rule neon),\n"
        "and is an adapter that undoes the distillation too.\n"
        "Not taken, for the same reason: FLUX.1-dev, FLUX.1-schnell, FLUX.2-dev, latent consistency models."
    )
    evaluate_help = (
        "Measure a sample folder: fid, kid, precision, recall, density, coverage, clip_score, pickscore, hpsv2.1, "
        "imagereward, aesthetic; oracle, of the demo's pictures."
    )
    options: ClassVar[Mapping[str, Decorator]] = {
        "evaluate": stack(
            click.option(
                "--feature-network",
                type=click.Choice(["inception", "oracle"]),
                default="inception",
                show_default=True,
                help="Whose features fid, kid, precision, recall, density and coverage are of; oracle: the demo's.",
            ),
        )
    }

    def known(self) -> Mapping[str, KnownModel]:
        from selfnpo_image.models import KNOWN

        return KNOWN

    def row(self, model: KnownModel) -> Mapping[str, str]:
        return {
            "name": model.name,
            "family": model.family,
            "hub id": model.hub_id or "(in the package)",
            "parameters": f"{model.parameters / 1e6:,.1f} M",
            "predicts": model.prediction_type,
            "branches": "one, distilled" if model.distilled else "both",
            "dtype": model.dtype,
            "memory": model.memory or "—",
            "licence": model.licence,
        }

    def find(self, name: str, config: str | None) -> ImageBase:
        from selfnpo_image.families import find_base

        return find_base(name, config)

    def prompts(self, name: str, model: str) -> list[str]:
        from selfnpo_image.prompts import load_prompts

        return load_prompts(name, model)

    def presets(self, base: ImageBase, name: str | None = None) -> Presets:
        from selfnpo_image.families import presets_for

        return presets_for(base, name)

    def backbone(self, base: ImageBase, recipe: Recipe, dtype: torch.dtype, device: str) -> ImageBackbone:
        from selfnpo_image.families import FAMILIES

        _refuse_frames(base, recipe)
        if base.distilled:
            _say_distilled(base.name)
        made = FAMILIES[base.family]
        return made(base, **_options(recipe), dtype=dtype, device=device)

    def sketch(self, base: ImageBase, recipe: Recipe, dtype: torch.dtype) -> ImageBackbone | None:
        from selfnpo_image.families import FAMILIES

        _refuse_frames(base, recipe)
        if base.distilled:
            _say_distilled(base.name)
        return FAMILIES[base.family].sketch(base, **_options(recipe), dtype=dtype)

    def plan(self, options: Options) -> Job:
        from selfnpo_image import sampling

        return sampling.plan(options)

    def sample(self, job: Job, output: str) -> int:
        from selfnpo_image import sampling

        return sampling.sample(job, output)

    def compare(self, job: Job, output: str) -> Mapping[str, Any] | None:
        from selfnpo_image import compare

        return compare.compare(job, output)

    def medium(self, options: Options) -> ShownMedium:
        from selfnpo_image.medium import PICTURES

        return PICTURES

    def metrics(self) -> MetricSet:
        from selfnpo_image.evaluation import metric_set

        return metric_set()

    def demo(self) -> Demo:
        from selfnpo_image.demo import pictures

        return pictures.demo()

    def kohya(self, lora: Lora, npo: Npo, base: ImageBase, beta: float, scale: float, file: str) -> KohyaFiles:
        from selfnpo_image import comfyui, kohya

        made = kohya.files if base.kind.comfy is None else comfyui.files
        return made(lora, npo, base, beta, scale, file)


def _options(recipe: Recipe) -> dict[str, Any]:
    """What a recipe tells a backbone."""
    size = {"height": recipe.height, "width": recipe.width}
    return {**size, "tiling": bool(recipe.sample_tiling), "null_prompt": recipe.null_prompt}


@cache
def _say_distilled(name: str) -> None:
    """Once: a run is sketched before its base is loaded."""
    log.warning(
        "%s is distilled and runs no negative branch: weights that are trained on its own samples serve Neon "
        "(--npo-rule neon), or, loaded as a LoRA to train on, as an adapter that undoes the distillation",
        name,
    )


def _refuse_frames(base: ImageBase, recipe: Recipe) -> None:
    if recipe.frames is not None:
        raise InputError(f"frames is {recipe.frames}, but {base.name} makes pictures: leave it out")


IMAGE = ImageFamily()
