"""`compare`: both arms side by side."""

import json
from typing import Any

import click

from selfnpo_core.commands.options import sampling_options
from selfnpo_video.commands.sample import clip_options


@click.command(help="Draw the same prompts and seeds with and without --npo, side by side under captions.")
@sampling_options
@clip_options
def compare(**options: Any) -> None:
    from selfnpo_video import compare as comparing
    from selfnpo_video import sampling

    job = sampling.plan(options)
    metrics = comparing.compare(job, options["output"])
    click.echo(f"{len(job.prompts)} pairs in {options['output']}")
    if metrics is not None:
        click.echo(json.dumps(metrics, indent=1))
