"""`study`: which pictures people prefer."""

from typing import Any

import click

from selfnpo_core.commands.options import study_options


@click.command(help="A page on which people compare two folders of pictures, blind. Votes are kept; Ctrl-C ends it.")
@study_options
def study(dir_a: str, dir_b: str, **options: Any) -> None:
    from selfnpo_core.commands.study import run_study
    from selfnpo_image.study import PICTURES

    run_study(PICTURES, dir_a, dir_b, options)
