"""`inspect`: what negative weights are, and how strong."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from selfnpo_core.commands.family import AnyFamily, Options
from selfnpo_core.commands.printing import echo_json
from selfnpo_core.training.recipe import build_recipe
from selfnpo_core.weights import inspection


def run_inspect(family: AnyFamily, options: Options) -> int:
    """Say what negative weights are. Returns the exit code: 1 if they do nothing."""
    model = options["model"]
    npo = inspection.inspect_npo(options["path"])
    facts = inspection.describe(npo)
    if model is None and facts["base_model"] == "demo":
        model = "demo"
    facts["strength"] = None
    if model is not None and facts["has_effect"]:
        stored = npo.config.recipe if npo.config else {}
        size = {key: stored.get(key) for key in ("frames", "height", "width")}
        base = family.find(model, options["model_config"])
        backbone = family.backbone(base, build_recipe(size), torch.float32, "auto")
        facts["strength"] = asdict(inspection.measure_strength(npo, backbone))
    if options["plot"] is not None:
        inspection.plot(facts, Path(options["plot"]))
    if options["as_json"]:
        echo_json(facts)
    else:
        click.echo(_describe(facts))
    return 0 if facts["has_effect"] and facts["finite"] else 1


def _describe(facts: dict[str, Any]) -> str:
    ranks, recommended, strength = facts["ranks"], facts["recommended"], facts["strength"]
    rank = f", rank {', '.join(map(str, ranks))}" if ranks else ""
    base = f"{facts['base_model']} ({facts['family']}, {facts['base_hash'][:12]})" if facts["base_model"] else "unknown"
    lines = [
        f"{facts['path']}",
        f"what          {facts['kind']}{rank}, {facts['parameters']:,} numbers in {', '.join(facts['dtypes'])}",
        f"base          {base}",
        f"layers        {facts['layers']}, {facts['layers_without_effect']} of them without effect",
        f"norm          {facts['norm']:.4g}",
        *_carriers(facts["by_layer"]),
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
        lines.append("  at t        " + ", ".join(f"{t:.0f}: {ratio:.2%}" for t, ratio in strength["by_timestep"]))
    elif facts["has_effect"]:
        lines.append("strength      not measured: give the base as --model")
    if not facts["finite"]:
        lines.append("it holds NaN or infinite numbers: train again")
    elif not facts["has_effect"]:
        lines.append("it does nothing: all its changes are zero")
    return "\n".join(lines)


def _carriers(layers: Sequence[Mapping[str, Any]], shown: int = 5) -> list[str]:
    """The layers with the largest shares of ‖δ‖²."""
    first = [f"{layer['share']:6.1%}  {layer['layer']}" for layer in layers[:shown] if layer["share"] > 0]
    return [f"{'carried by' if i == 0 else '':<14}{line}" for i, line in enumerate(first)]
