"""`compare`: both arms side by side."""

import json
from typing import Any

import click

from selfnpo_core.commands.options import sampling_options


@click.command(help="Draw the same prompts and seeds with and without --npo, side by side under captions.")
@sampling_options
def compare(**options: Any) -> None:
    from selfnpo_image import compare as comparing
    from selfnpo_image import sampling

    job = sampling.plan(options)
    metrics = comparing.compare(job, options["output"])
    click.echo(f"{len(job.prompts)} pairs and {comparing.SHEET} in {options['output']}")
    if metrics is not None:
        click.echo(json.dumps(metrics, indent=1))
