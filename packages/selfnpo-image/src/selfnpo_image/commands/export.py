"""`export`: negative weights for other programs."""

from typing import Any

import click

from selfnpo_core.commands.options import export_options
from selfnpo_image.commands.train import family


@click.command(help="Write negative weights in a form that other programs read. --model defaults to their own base.")
@export_options
def export(**options: Any) -> None:
    from selfnpo_core.commands.export import run_export

    run_export(family(), options)
