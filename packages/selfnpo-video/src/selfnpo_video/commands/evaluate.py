"""`evaluate`: figures of a sample folder, and paired tests against another."""

from typing import Any

import click

from selfnpo_core.commands.options import evaluate_options, stack

clip_metric_options = stack(
    click.option(
        "--feature-network",
        metavar="NAME|DIR",
        default="videomae",
        show_default=True,
        help="Whose features fvd, kvd, precision, … are of: videomae, a folder or hub id of a VideoMAE or TimeSformer "
        "of transformers, or oracle, the demo's.",
    ),
    click.option("--vbench-export", metavar="OUT", help="Put the clips there under the names that VBench wants."),
    click.option(
        "--vbench-results", metavar="FILE", help="VBench's …_eval_results.json of DIR, for the metric vbench."
    ),
    click.option("--vbench-against", metavar="FILE", help="The same, of --against."),
)


@click.command(
    help="Measure a sample folder: fvd, kvd, precision, recall, density, coverage, clip_score, frame_consistency, "
    "motion, speed; oracle, of the demo's clips; vbench, of VBench's own results."
)
@evaluate_options
@clip_metric_options
def evaluate(**options: Any) -> None:
    from selfnpo_core.commands.evaluate import run_evaluate
    from selfnpo_video.evaluation import metric_set, vbench

    if options["vbench_export"] is not None:
        count = vbench.export(metric_set().media, options)
        click.echo(f"{count} clips and {vbench.PROMPTS} in {options['vbench_export']}")
    if options["metrics"] is not None or options["vbench_export"] is None:
        run_evaluate(metric_set(), options)
