"""`inspect`: what negative weights are, how strong, and what they do that no knob does."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from selfnpo_core.commands.family import AnyFamily, Options
from selfnpo_core.commands.printing import echo_json
from selfnpo_core.errors import InputError
from selfnpo_core.models.base import Base
from selfnpo_core.models.prompts import kept_prompts
from selfnpo_core.reporting.decomposition import DECOMPOSITION
from selfnpo_core.system.files import file_sha256, write_json
from selfnpo_core.system.paths import check_file
from selfnpo_core.training.resolving import build_recipe
from selfnpo_core.training.run_folder import holds_run
from selfnpo_core.weights import dissection, inspection
from selfnpo_core.weights.npo_folder import Npo
from selfnpo_core.weights.npo_rule import NpoRule

PLOTS = (".png", ".pdf", ".svg", ".jpg", ".webp")


def run_inspect(family: AnyFamily, options: Options) -> int:
    """Say what negative weights are. Returns the exit code: 1 if they do nothing."""
    model = options["model"]
    if options["plot"] is not None:
        check_file(options["plot"], "--plot")
        if Path(options["plot"]).suffix.lower() not in PLOTS:
            raise InputError(f"--plot {options['plot']}: give a name that ends in {', '.join(PLOTS)}")
    npo = inspection.inspect_npo(options["path"])
    facts = inspection.describe(npo)
    if model is None and facts["base_model"] == "demo":
        model = "demo"
    facts["strength"] = facts["decomposition"] = facts["acts_on"] = None
    kept = _kept(npo, model, options) if options["keep"] else None
    if model is not None and facts["has_effect"]:
        facts |= _measured(family, npo, model, options, finite=facts["finite"])
    if kept is not None:
        _keep(kept, npo, facts["decomposition"])
    if options["plot"] is not None:
        inspection.plot(facts, Path(options["plot"]))
    if options["as_json"]:
        echo_json(facts)
    else:
        click.echo(_describe(facts))
    return 0 if facts["has_effect"] and facts["finite"] else 1


def _measured(family: AnyFamily, npo: Npo, model: str, options: Options, *, finite: bool) -> dict[str, Any]:
    """What needs the base. Of numbers that are not finite nothing is taken apart."""
    stored = npo.config.recipe if npo.config else {}
    asked = {key: stored.get(key) for key in ("frames", "height", "width", "null_prompt")}
    base = family.find(model, options["model_config"])
    acts = {"acts_on": _acts_on(npo, base)}
    backbone = family.backbone(base, build_recipe(asked), torch.float32, "auto")
    trajectories = options["trajectories"]
    if not (trajectories and finite):
        return {**acts, "strength": asdict(inspection.measure_strength(npo, backbone))}
    prompts = _prompts(family, npo, model)
    strength, found = dissection.measure(npo, backbone, prompts, trajectories=trajectories)
    return {**acts, "strength": asdict(strength), "decomposition": found.as_facts()}


def _acts_on(npo: Npo, base: Base) -> str:
    """Which rows of this model's forwards get the weights, and when there are none."""
    rule = npo.config.recommended.rule if npo.config else NpoRule()
    if rule.extrapolates:
        return "both branches, with guidance and without"
    if base.distilled:
        return f"nothing: {base.name} is distilled and runs no negative branch, so they act by rule neon only"
    usual = base.known.guidance_scale if base.known else None
    words = "the negative branch, which runs at guidance scales above 1 only"
    return words if usual is None or usual > 1 else f"{words}: this model is drawn at {usual:g}, where they do nothing"


def _kept(npo: Npo, model: str | None, options: Options) -> Path:
    """The run that the figures will be kept in, before anything is measured."""
    run = npo.path.absolute().parent.parent
    if not holds_run(run):
        raise InputError(f"{npo.path} lies in no run, so there is no place to keep figures: leave --keep out")
    if model is None or not options["trajectories"]:
        raise InputError("--keep is of what is taken apart: give the base as --model, and some --trajectories")
    return run


def _keep(run: Path, npo: Npo, found: Mapping[str, Any] | None) -> None:
    if found is None:
        raise InputError(f"{npo.path} has no effect, or no finite numbers: there is nothing to keep")
    write_json(run / DECOMPOSITION, {"schema": 1, "npo_sha256": file_sha256(npo.path), **found})


def _prompts(family: AnyFamily, npo: Npo, model: str) -> list[str]:
    """Those of the run that the weights lie in, or the built-in ones."""
    run = npo.path.absolute().parent.parent
    kept = run / "prompts.txt"
    return kept_prompts(kept) if holds_run(run) and kept.is_file() else family.prompts("builtin", model)


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
        *_rest_of_file(facts),
        *_carriers(facts["by_layer"]),
    ]
    if recommended:
        low, high = recommended["guidance_scale"]
        lines.append(
            f"recommended   beta {recommended['beta']:g}, alpha {recommended['alpha']:g}, guidance scale {low:g} to "
            f"{high:g}, negative condition {facts['negative_condition']}, rule {NpoRule(**recommended['rule'])}"
        )
    if facts["null_prompt"] is not None:
        lines.append(f"null prompt   {facts['null_prompt']}")
    if strength:
        lines.append(
            f"strength      |Δε|/|ε| {strength['overall']:.2%} ({strength['noisiest']:.2%} at the noisiest, "
            f"{strength['cleanest']:.2%} at the cleanest)"
        )
        lines.append("  at t        " + ", ".join(f"{t:.0f}: {ratio:.2%}" for t, ratio in strength["by_timestep"]))
        lines += _taken_apart(facts["decomposition"]) if facts["decomposition"] else []
    elif facts["has_effect"]:
        lines.append("strength      not measured: give the base as --model")
    if not facts["finite"]:
        lines.append("it holds NaN or infinite numbers: train again")
    elif not facts["has_effect"]:
        lines.append("it does nothing: all its changes are zero")
    return "\n".join(lines)


def _rest_of_file(facts: Mapping[str, Any]) -> list[str]:
    lines = [f"names         {facts['naming']}'s"] if facts["naming"] not in (None, "PEFT") else []
    if facts["left_out"]:
        lines.append(f"left out      {facts['left_out']}")
    if facts["alpha_guessed"]:
        lines.append(f"alpha         not said of {facts['alpha_guessed']} layers: the rank, which is a guess")
    return lines + ([f"acts on       {facts['acts_on']}"] if facts["acts_on"] else [])


def _taken_apart(found: Mapping[str, Any]) -> list[str]:
    """Δ at each noise level and at all of them, then what it is."""
    head = ("t", "‖Δ‖/‖d‖", "κ", "k", "r", "acts as")
    levels = [(f"{level['timestep']:.0f}", level) for level in found["by_timestep"]]
    rows = [
        (
            name,
            f"{level['size']:.1%}",
            f"{level['kappa']:+.3f}",
            f"{level['k']:+.3f}",
            f"{level['rest_share']:.0%}",
            f"{level['effective_scale']:.2f}",
        )
        for name, level in [*levels, ("all", found["overall"])]
    ]
    return [
        f"taken apart   on {found['trajectories']} guided trajectories, guidance scale {found['guidance_scale']:g}, "
        f"beta {found['beta']:g}",
        *(" " * 14 + "".join(f"{cell:>9}" for cell in row) for row in (head, *rows)),
        f"what it is    {found['sentence']}",
    ]


def _carriers(layers: Sequence[Mapping[str, Any]], shown: int = 5) -> list[str]:
    """The layers with the largest shares of ‖δ‖²."""
    first = [f"{layer['share']:6.1%}  {layer['layer']}" for layer in layers[:shown] if layer["share"] > 0]
    return [f"{'carried by' if i == 0 else '':<14}{line}" for i, line in enumerate(first)]
