"""`evaluate`: a sample folder, and another at the same prompts and seeds, measured by metrics by name."""

from typing import Any

import click

from selfnpo_core.commands.family import Options
from selfnpo_core.commands.printing import echo_table
from selfnpo_core.evaluation.metrics import table
from selfnpo_core.evaluation.run import MetricSet, evaluate
from selfnpo_core.sampling.medium import Medium


def run_evaluate(offered: MetricSet, medium: Medium, options: Options) -> dict[str, Any] | None:
    """The whole command. Returns the results, or None where nothing is measured, or of any process but the first."""
    exported = offered.export(options)
    if exported is not None:
        click.echo(exported)
        if options["metrics"] is None:
            return None
    results = evaluate(offered, medium, options)
    if results is not None:
        echo_table(*table(results["metrics"]))
    return results
