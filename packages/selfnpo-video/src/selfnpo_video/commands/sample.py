"""`sample`: clips into a folder."""

from typing import Any

import click

from selfnpo_core.commands.options import sampling_options, stack

ATTENTION = click.Choice(["auto", "sdpa", "xformers", "flash"])

clip_options = stack(
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
        "--tiling",
        is_flag=True,
        help="Decode tile by tile: less memory for large frames, slightly other pixels where tiles meet.",
    ),
    click.option("--fps", type=click.IntRange(min=1), help="Frames a second. Default: the model's."),
    click.option("--format", type=click.Choice(["mp4", "webp", "gif", "frames"]), default="mp4", show_default=True),
    click.option("--attention", type=ATTENTION, default="auto", show_default=True, help="What computes attention."),
    click.option("--image", metavar="FILE", help="First frame, for image-to-video models."),
    click.option(
        "--dynamic-guidance", is_flag=True, help="A guidance scale that depends on the timestep, as CogVideoX's own."
    ),
)
"""Options of `sample` and `compare` beside the common ones."""


@click.command(help="Draw clips as 00000-SEED.mp4 with a metadata.jsonl. The same command again goes on.")
@sampling_options
@clip_options
def sample(**options: Any) -> None:
    from selfnpo_video import sampling

    job = sampling.plan(options)
    drawn = sampling.sample(job, options["output"])
    click.echo(f"{drawn} clips drawn, {len(job.prompts)} in {options['output']}")
