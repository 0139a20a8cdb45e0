"""`study`: which clips people prefer."""

from typing import Any

import click

from selfnpo_core.commands.options import study_options


@click.command(help="A page on which people compare two folders of clips, blind. Votes are kept; Ctrl-C ends it.")
@study_options
def study(dir_a: str, dir_b: str, **options: Any) -> None:
    from selfnpo_core.commands.study import run_study
    from selfnpo_video.study import CLIPS

    run_study(CLIPS, dir_a, dir_b, options)
