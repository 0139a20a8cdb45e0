"""A training run as a report: its recipe, how its updates went, what came out, and figures of exactly that."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.reporting import words
from selfnpo_core.reporting.figures import Evaluated, figures_in, read_figures, read_json_object
from selfnpo_core.reporting.shown import Shown, curve, shown_grid, some
from selfnpo_core.reporting.words import Names
from selfnpo_core.system.durations import duration
from selfnpo_core.system.files import file_sha256
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.run_folder import stored_recipe
from selfnpo_core.weights.inspection import describe, inspect_npo
from selfnpo_core.weights.npo_folder import CONFIG_FILE, LORA_FILE, NpoConfig, find_npo_file, read_config

log = logging.getLogger(__name__)
GRIDS = 4
"""Sample grids that are shown, evenly spread over the run."""
CARD = "README.md"
WITH, WITHOUT = "with", "without"
_CURVES = {"loss": "loss", "drift": "drift, ‖Δθ‖/‖θ‖", "grad_norm": "norm of the gradient"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder holds."""

    path: Path
    recipe: Recipe
    facts: Mapping[str, Any]
    """run.json."""
    updates: Sequence[Mapping[str, Any]]
    npo: Path | None
    """The weights' file."""
    inspected: Mapping[str, Any] | None
    """What `inspect` tells without a model, of a LoRA: a whole network's offset takes long to read."""
    config: NpoConfig | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures of the run's weights. arms: how they and what they are compared with were sampled."""

    evaluated: Evaluated
    names: Names

    @property
    def conditions(self) -> list[tuple[str, Sequence[str]]]:
        """How the samples were made: a value for both arms, or one for each."""
        made = [each.made for each in (self.evaluated.against, self.evaluated.folder) if each is not None]
        found: list[tuple[str, Sequence[str]]] = [("samples", [str(self.evaluated.folder.samples)])]
        for key in dict.fromkeys(key for each in made for key in each):
            values = ["—" if each.get(key) is None else str(each[key]) for each in made]
            if any(value != "—" for value in values) and not key.startswith("npo"):
                found.append((key.replace("_", " "), values[:1] if len(set(values)) == 1 else values))
        return found


def read_run(path: Path) -> Run:
    recipe = stored_recipe(path)
    npo: Path | None = None
    config: NpoConfig | None = None
    inspected: Mapping[str, Any] | None = None
    if (path / "npo").is_dir():
        npo = find_npo_file(path / "npo")
        if npo.name == LORA_FILE:
            told = inspect_npo(npo)
            config, inspected = told.config, describe(told)
        else:
            config = read_config(npo.parent / CONFIG_FILE)
    return Run(
        path=path,
        recipe=recipe,
        facts=read_json_object(path / "run.json"),
        updates=_updates(path / "metrics.jsonl"),
        npo=npo,
        inspected=inspected,
        config=config,
    )


def measured(run: Run, given: Sequence[str]) -> Measured | None:
    """Figures of these weights: those given, or the newest in the run's folder. Others' are refused, or passed over."""
    if given:
        if len(given) > 1:
            raise InputError("a run takes one --figures FILE: measure everything at once, with --metrics A,B,…")
        figures = read_figures(Path(given[0]))
        found = _of_these_weights(run, figures) if isinstance(figures, Evaluated) else None
        if found is None:
            raise InputError(f"{given[0]} has no figures by evaluate of the weights in {run.path}: measure those")
        return found
    for file, figures in figures_in(run.path):
        if not isinstance(figures, Evaluated):
            continue
        if (found := _of_these_weights(run, figures)) is not None:
            log.info("figures: %s", file)
            return found
        log.warning("left out: %s is not of the weights that are now in %s", file, run.path)
    return None


def _of_these_weights(run: Run, figures: Evaluated) -> Measured | None:
    """The figures as those of the arm that was drawn with these very weights, by their hash."""
    if run.npo is None:
        return None
    own, against = file_sha256(run.npo), figures.against
    if figures.folder.made.get("npo_sha256") != own:
        if against is None or against.made.get("npo_sha256") != own:
            return None
        figures = figures.turned()
    elif against is not None and against.made.get("npo_sha256") == own:
        return None  # both: it says nothing of what they change
    return Measured(evaluated=figures, names=Names(WITH, _other_name(figures)))


def _other_name(figures: Evaluated) -> str | None:
    if figures.against is None:
        return None
    return WITHOUT if figures.against.made.get("npo") is None else Path(figures.against.path).name


def _guided(recipe: Recipe) -> str:
    """By whom the student is taught."""
    if recipe.rollout == "samples":
        rounds = f" in each of {recipe.rounds} rounds" if recipe.rounds > 1 else ""
        return f"{recipe.samples} finished samples{rounds}, loss {recipe.loss}"
    if recipe.pool_target == "endpoint":
        return f"its endpoints at guidance {recipe.step_guidance:g}, loss {recipe.loss}"
    return f"teacher guidance {recipe.teacher_guidance:g}"


def facts(run: Run) -> list[tuple[str, str]]:
    """The run in a few lines."""
    recipe, updates, base = run.recipe, run.updates, run.facts.get("base_hash", "")
    done = int(updates[-1]["step"]) if updates else 0
    state = "finished" if done >= recipe.steps else "not finished"
    found = [
        ("base", f"{recipe.model or '—'} ({run.facts.get('family', '—')})"),
        ("base weights", f"sha256 {str(base)[:16]}…"),
        ("objective", f"{recipe.objective}, {recipe.rollout} rollout, {_guided(recipe)}"),
        ("updates", f"{done} of {recipe.steps}, {state}"),
    ]
    seconds = [u["seconds"] for u in updates if _is_number(u.get("seconds"))]
    if seconds:
        total = sum(seconds)
        found.append(("seconds an update", f"{median(seconds):.3g} (median); {duration(total)} in all updates"))
    rows = [sum(int(u.get(f"{kind}_rows", 0)) for kind in ("teacher", "student", "base")) for u in updates]
    if any(rows):
        found.append(("rows an update", f"{sum(rows) / len(rows):.4g} forward rows of the first process (mean)"))
    if updates and updates[-1].get("skipped"):
        found.append(("skipped", f"{updates[-1]['skipped']} updates whose loss or gradient was not finite"))
    checkpoints = sorted(p.name for p in (run.path / "checkpoints").glob("step-*") if (p / "manifest.json").is_file())
    found.append(("checkpoints", ", ".join(checkpoints) or "none"))
    return found


def result(run: Run) -> list[tuple[str, str]]:
    """The npo folder, as `inspect` tells it."""
    if run.npo is None or run.config is None:
        return []
    found = [("file", f"{run.npo.name}, sha256 {file_sha256(run.npo)[:16]}…, {_size(run.npo.stat().st_size)}")]
    if run.inspected is not None:
        told = run.inspected
        ranks = ", ".join(map(str, told["ranks"]))
        found.append(("what", f"{told['kind']} of rank {ranks}, {told['parameters']:,} numbers"))
        found.append(("layers", f"{told['layers']}, {told['layers_without_effect']} of them without effect"))
        found.append(("norm", f"‖δ‖ {told['norm']:.4g}"))
        first = [f"{layer['layer']} ({layer['share']:.1%})" for layer in told["by_layer"][:3] if layer["share"] > 0]
        found += [("carried by", ", ".join(first))] if first else []
    best = run.config.recommended
    low, high = best.guidance_scale
    use = f"beta {best.beta:g}, alpha {best.alpha:g}, guidance scale {low:g} to {high:g}"
    found.append(("recommended", f"{use}, negative condition {run.config.negative_condition}, rule {best.rule}"))
    found.append(("strength", "‖Δε‖/‖ε‖ needs the base: inspect with --model measures it"))
    versions = run.config.versions
    found += [("made with", ", ".join(f"{name} {version}" for name, version in versions.items()))] if versions else []
    return found


def curves(run: Run) -> list[str]:
    """Plots as <svg> elements."""
    found = []
    for key, label in _CURVES.items():
        points = [(u["step"], u[key]) for u in run.updates if _is_number(u.get(key))]
        if points:
            x, y = zip(*points, strict=True)
            bound = run.recipe.max_drift if key == "drift" else None
            found.append(curve(key.replace("_", ""), label, x, y, bound=bound))
    return found


def grids(run: Run) -> list[tuple[str, Shown]]:
    files = sorted((run.path / "samples").glob("step-*.png"))
    return [(f"update {int(file.stem.removeprefix('step-'))}", shown_grid(file)) for file in some(files, GRIDS)[::-1]]


def warnings(run: Run, found: Measured | None) -> list[str]:
    told = []
    if run.npo is None:
        told.append("There are no negative weights yet: the run was stopped before its first checkpoint.")
    if run.inspected is not None and not run.inspected["has_effect"]:
        told.append("The negative weights do nothing: all their changes are zero.")
    if run.inspected is not None and not run.inspected["finite"]:
        told.append("The negative weights hold NaN or infinite numbers.")
    if run.updates and not all(_is_number(update.get("loss")) for update in run.updates):
        told.append("Some updates have a loss that is not finite.")
    if found is not None:
        told += words.spoilt(found.evaluated)
        for name, figure in found.evaluated.metrics.items():
            told += words.cautions(name, figure, found.names)
    return told


def _updates(file: Path) -> list[Mapping[str, Any]]:
    """The whole lines of metrics.jsonl, whose last one a kill may have cut."""
    found: list[Mapping[str, Any]] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            update = json.loads(line)
        except ValueError:
            continue
        if isinstance(update, dict) and _is_number(update.get("step")):
            found.append(update)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _size(count: float) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
