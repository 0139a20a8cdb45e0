"""`report`: one page of what was measured."""

from typing import Any

import click

from selfnpo_core.commands.options import report_options


@click.command(
    help="Write one HTML page of a training run, of a folder that `compare` made, or of clips: what was measured, "
    "how sure it is, and the samples that gained most, lost most, and some at random. It opens anywhere, offline."
)
@report_options
def report(**options: Any) -> None:
    from selfnpo_core.commands.report import run_report
    from selfnpo_video.evaluation import metric_set

    run_report(metric_set().media, options)
