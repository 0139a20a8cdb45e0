"""`sample` and `compare`: samples into folders, and both arms side by side."""

import json

import click

from selfnpo_core.commands.family import AnyFamily, Options
from selfnpo_core.system.paths import check_folder


def run_sample(family: AnyFamily, options: Options) -> None:
    """Draw what is missing in --output."""
    check_folder(options["output"])
    job = family.plan(options)
    drawn = family.sample(job, options["output"])
    click.echo(f"{drawn} {family.unit}s drawn, {len(job.prompts)} in {options['output']}")


def run_compare(family: AnyFamily, options: Options) -> None:
    """Draw both arms, and print what the world's oracle says, if there is one."""
    check_folder(options["output"])
    job = family.plan(options)
    metrics = family.compare(job, options["output"])
    click.echo(f"{len(job.prompts)} {family.made_by_compare} in {options['output']}")
    if metrics is not None:
        click.echo(json.dumps(metrics, indent=1))
