"""`inspect`: what negative weights are."""

from dataclasses import asdict
from typing import Any

import click

from selfnpo_core.cli import echo_json, model_options


@click.command(help="Say what FILE or RUN is. Exit 1 if it does nothing. --model measures its strength on the base.")
@click.argument("path", metavar="FILE|RUN")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(path: str, model: str | None, model_config: str | None, as_json: bool) -> int:
    from selfnpo_image import inspection
    from selfnpo_image.models import find_source

    npo = inspection.inspect_npo(path)
    facts = inspection.describe(npo)
    if model is None and facts["base_model"] == "demo":
        model = "demo"
    facts["strength"] = None
    if model is not None and facts["has_effect"]:
        facts["strength"] = asdict(inspection.measure_strength(npo, find_source(model, model_config)))
    if as_json:
        echo_json(facts)
    else:
        click.echo(_text(facts))
    return 0 if facts["has_effect"] and facts["finite"] else 1


def _text(facts: dict[str, Any]) -> str:
    ranks, recommended, strength = facts["ranks"], facts["recommended"], facts["strength"]
    rank = f", rank {', '.join(map(str, ranks))}" if ranks else ""
    base = f"{facts['base_model']} ({facts['family']}, {facts['base_hash'][:12]})" if facts["base_model"] else "unknown"
    lines = [
        f"{facts['path']}",
        f"what          {facts['kind']}{rank}, {facts['parameters']:,} numbers in {', '.join(facts['dtypes'])}",
        f"base          {base}",
        f"layers        {facts['layers']}, {facts['layers_without_effect']} of them without effect",
        f"norm          {facts['norm']:.4g}",
    ]
    if recommended:
        low, high = recommended["guidance_scale"]
        lines.append(
            f"recommended   beta {recommended['beta']:g}, alpha {recommended['alpha']:g}, guidance scale {low:g} to "
            f"{high:g}, negative condition {facts['negative_condition']}"
        )
    if strength:
        lines.append(
            f"strength      |Δε|/|ε| {strength['overall']:.2%} ({strength['noisiest']:.2%} at the noisiest, "
            f"{strength['cleanest']:.2%} at the cleanest)"
        )
    elif facts["has_effect"]:
        lines.append("strength      not measured: give the base as --model")
    if not facts["finite"]:
        lines.append("it holds NaN or infinite numbers: train again")
    elif not facts["has_effect"]:
        lines.append("it does nothing: all its changes are zero")
    return "\n".join(lines)
