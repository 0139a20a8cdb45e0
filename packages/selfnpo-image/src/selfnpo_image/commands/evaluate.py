"""`evaluate`: figures of a sample folder, and paired tests against another."""

from typing import Any

import click

from selfnpo_core.commands.options import evaluate_options, stack

feature_options = stack(
    click.option(
        "--feature-network",
        type=click.Choice(["inception", "oracle"]),
        default="inception",
        show_default=True,
        help="Whose features fid, kid, precision, recall, density and coverage are of; oracle: the demo's.",
    ),
)


@click.command(
    help="Measure a sample folder: fid, kid, precision, recall, density, coverage, clip_score, pickscore, hpsv2.1, "
    "imagereward, aesthetic; oracle, of the demo's pictures."
)
@evaluate_options
@feature_options
def evaluate(**options: Any) -> None:
    from selfnpo_core.commands.evaluate import run_evaluate
    from selfnpo_image.evaluation import metric_set

    run_evaluate(metric_set(), options)
