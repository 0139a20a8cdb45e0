"""`sample`: pictures into a folder."""

from typing import Any

import click

from selfnpo_core.commands.options import sampling_options


@click.command(help="Draw pictures as 00000-SEED.png with a metadata.jsonl. The same command again goes on.")
@sampling_options
def sample(**options: Any) -> None:
    from selfnpo_image import sampling

    job = sampling.plan(options)
    drawn = sampling.sample(job, options["output"])
    click.echo(f"{drawn} pictures drawn, {len(job.prompts)} in {options['output']}")
