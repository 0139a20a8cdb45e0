"""`evaluate`: a sample folder, and another at the same prompts and seeds, measured by metrics by name."""

from collections.abc import Mapping
from typing import Any

from selfnpo_core.commands.printing import echo_table
from selfnpo_core.evaluation.metrics import table
from selfnpo_core.evaluation.run import MetricSet, evaluate


def run_evaluate(metrics: MetricSet, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The whole command. Returns the results, or None of any process but the first."""
    results = evaluate(metrics, options)
    if results is not None:
        echo_table(*table(results["metrics"]))
    return results
