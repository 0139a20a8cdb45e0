"""Video models as the commands know them. What a command needs is imported when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import click

from selfnpo_core.commands.family import Family, Options
from selfnpo_core.commands.options import PATH, Decorator, stack

if TYPE_CHECKING:
    import torch

    from selfnpo_core.evaluation.run import MetricSet
    from selfnpo_core.models.sources import KnownModel
    from selfnpo_core.sampling.medium import ShownMedium
    from selfnpo_core.training.recipe import Presets, Recipe
    from selfnpo_core.worlds.world import Demo
    from selfnpo_video.backbone import VideoBackbone
    from selfnpo_video.kinds import VideoBase
    from selfnpo_video.models import KnownVideoModel
    from selfnpo_video.sampling import Job

ATTENTION = click.Choice(["auto", "sdpa", "xformers", "flash"])

reader_option = click.option(
    "--reader",
    type=click.Choice(["ffmpeg", "decord"]),
    default="ffmpeg",
    show_default=True,
    help="What decodes video files. decord has other colours; its frames are held against ffmpeg's.",
)
"""Of every command that reads clips of whatever origin."""

clip_options = stack(
    click.option(
        "--original-prompts",
        type=PATH,
        metavar="FILE",
        help="What the lines of --prompts were enhanced from, line by line: VBench's names go by these.",
    ),
    click.option("--frames", type=click.IntRange(min=1), help="Of each clip. Default: what the model was made for."),
    click.option(
        "--window",
        type=click.IntRange(min=1),
        help="Frames that the model sees at a time, for long clips. A step's time grows with the number of windows.",
    ),
    click.option(
        "--window-place",
        type=click.IntRange(min=0),
        help="Latent frame at which the model takes windows but the first to begin. Default: what it was trained on, "
        "else 0, a clip's beginning.",
    ),
    click.option(
        "--tiling/--no-tiling",
        default=None,
        help="Decode tile by tile: less memory for large frames, slightly other pixels where tiles meet. Default: if "
        "whole frames do not fit.",
    ),
    click.option("--fps", type=click.IntRange(min=1), help="Frames a second. Default: the model's."),
    click.option("--format", type=click.Choice(["mp4", "webp", "gif", "frames"]), default="mp4", show_default=True),
    click.option("--attention", type=ATTENTION, default="auto", show_default=True, help="What computes attention."),
    click.option(
        "--image",
        type=PATH,
        metavar="FILE",
        help="First frame, for image-to-video models. In a table of prompts a column `image` has one a prompt.",
    ),
    click.option(
        "--scheduler",
        type=click.Choice(["auto", "ddim", "dpm", "unipc", "euler"]),
        default="auto",
        show_default=True,
        help="auto: the model's own; of CogVideoX ddim, dpm: with trailing timesteps, as its own sampling has them; of "
        "Wan unipc, euler: with the model's shift.",
    ),
    click.option(
        "--fit",
        type=click.Choice(["crop", "pad", "stretch"]),
        default="crop",
        show_default=True,
        help="How --image is brought to the clip's size. CogVideoX-1.5 takes the size from the image by default.",
    ),
    click.option(
        "--dynamic-guidance", is_flag=True, help="A guidance scale that depends on the timestep, as CogVideoX's own."
    ),
)
"""Options of `sample` and `compare` beside the common ones."""


class VideoFamily(Family["VideoBase", "Job"]):
    """CogVideoX, Wan, and the demo."""

    program = "selfnpo-video"
    about = "Self-NPO for video diffusion transformers (CogVideoX, Wan): negative weights, trained from prompts only."
    unit, suffix = "clip", "mp4"
    made_by_compare = "pairs"
    models_line = "Known models: hub id, licence, size, dtype, clip size."
    models_help = "List the models that go by a name. Any other CogVideoX or Wan model works too."
    models_also = "Also: a hub id owner/name or a diffusers folder of CogVideoX or Wan."
    evaluate_help = (
        "Measure a sample folder: fvd, kvd, precision, recall, density, coverage, clip_score, frame_consistency, "
        "motion, speed; oracle, of the demo's clips; vbench, of VBench's own results."
    )
    recipe_options = ("attention",)
    options: ClassVar[Mapping[str, Decorator]] = {
        "train": stack(
            click.option("--attention", type=ATTENTION, help="What computes attention. Default: the recipe's, auto.")
        ),
        "sample": clip_options,
        "evaluate": stack(
            click.option(
                "--feature-network",
                type=PATH,
                metavar="NAME|DIR",
                default="videomae",
                show_default=True,
                help="Whose features fvd, kvd, precision, … are of: videomae, a folder or hub id of a VideoMAE or "
                "TimeSformer of transformers, or oracle, the demo's.",
            ),
            click.option(
                "--vbench-export",
                type=PATH,
                metavar="OUT",
                help="Put the clips there under the names that VBench wants.",
            ),
            click.option(
                "--vbench-results",
                type=PATH,
                metavar="FILE",
                help="VBench's …_eval_results.json of DIR, for the metric vbench.",
            ),
            click.option("--vbench-against", type=PATH, metavar="FILE", help="The same, of --against."),
            reader_option,
        ),
        "study": reader_option,
        "report": reader_option,
    }

    def known(self) -> Mapping[str, KnownModel]:
        from selfnpo_video.models import KNOWN

        return KNOWN

    def row(self, model: KnownVideoModel) -> Mapping[str, str]:
        small = model.parameters < 1e9
        return {
            "name": model.name,
            "hub id": model.hub_id or "(in the package)",
            "parameters": f"{model.parameters / 1e6:,.1f} M" if small else f"{model.parameters / 1e9:,.2f} G",
            "clip": str(model.size),
            "dtype": model.dtype,
            "memory": model.memory or "—",
            "licence": model.licence,
            "for": "sample" if model.from_image else "train, sample",
        }

    def find(self, name: str, config: str | None) -> VideoBase:
        from selfnpo_video.families import find_base

        return find_base(name, config)

    def prompts(self, name: str, model: str) -> list[str]:
        from selfnpo_video.prompts import load_prompts

        return load_prompts(name, model)

    def presets(self, base: VideoBase, name: str | None = None) -> Presets:
        from selfnpo_video.families import presets_for

        return presets_for(base, name)

    def backbone(self, base: VideoBase, recipe: Recipe, dtype: torch.dtype, device: str) -> VideoBackbone:
        from selfnpo_video.families import backbone_of

        return backbone_of(base)(base, **_options(recipe), dtype=dtype, device=device)

    def sketch(self, base: VideoBase, recipe: Recipe, dtype: torch.dtype) -> VideoBackbone:
        from selfnpo_video.families import backbone_of

        return backbone_of(base).sketch(base, **_options(recipe), dtype=dtype)

    def plan(self, options: Options) -> Job:
        from selfnpo_video import sampling

        return sampling.plan(options)

    def sample(self, job: Job, output: str) -> int:
        from selfnpo_video import sampling

        return sampling.sample(job, output)

    def compare(self, job: Job, output: str) -> Mapping[str, Any] | None:
        from selfnpo_video import compare

        return compare.compare(job, output)

    def medium(self, options: Options) -> ShownMedium:
        from selfnpo_video.medium import clips

        return clips(options["reader"])

    def metrics(self) -> MetricSet:
        from selfnpo_video.evaluation import metric_set

        return metric_set()

    def demo(self) -> Demo:
        from selfnpo_video.demo import moving

        return moving.demo()


def _options(recipe: Recipe) -> dict[str, Any]:
    """What a recipe tells a backbone."""
    size = {"frames": recipe.frames, "height": recipe.height, "width": recipe.width}
    kept = {"keep_stored": recipe.train == "full", "null_prompt": recipe.null_prompt}
    return {**size, **kept, "tiling": recipe.sample_tiling}


VIDEO = VideoFamily()
