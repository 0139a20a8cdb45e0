"""How a recipe comes about: a family's preset, a YAML file and `key=value` overrides, later ones winning."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfnpo_core.errors import InputError
from selfnpo_core.training.presets import PAPER
from selfnpo_core.training.recipe import Presets, Recipe
from selfnpo_core.training.recipe_words import explain, parse_overrides, read_yaml, settled

log = logging.getLogger(__name__)

Overrides = Sequence[str] | Mapping[str, Any]
"""["key=value", …], or a mapping."""

FREE_ON_RESUME = frozenset(
    {
        "model",
        "prompts",
        "output",
        "embeddings_cache",
        "samples_cache",
        "compile_drawing",
        "negative_condition",
        "recommended",
        "steps",
        "batch_size",
        "grad_accumulation",
        "engine",
        "offload_optimizer",
        "offload_parameters",
        "deepspeed",
        "group_offload",
        "process_timeout",
        "other_batch_on_resume",
        "gradient_checkpointing",
        "pool_device",
        "uses",
        "max_skipped",
        "max_drift",
        "measure_every",
        "checkpoint_every",
        "keep_last",
        "trackers",
        "project",
        "sample_every",
        "sample_prompts",
        "sample_guidance_scales",
        "sample_steps",
        "sample_seed",
    }
)
"""Keys that may change when a run is resumed: they change no update that was already made.

Model and prompts are only names here: what they stand for is compared by its hash. Rows may be split otherwise among
parts and processes; that an update has as many of them is checked with the checkpoint.
"""


_TRAJECTORIES = ("pool", "truncated", "full")
_ROLLOUTS: Mapping[str, tuple[str, ...]] = {
    "pool_size": ("pool",),
    "pool_start": ("pool",),
    "pool_target": ("pool",),
    "truncation_steps": ("truncated",),
    "advance_guidance": ("pool", "truncated"),
    **dict.fromkeys(("teacher_guidance", "grid_steps"), _TRAJECTORIES),
    **dict.fromkeys(("samples", "uses", "rounds", "sample_guidance", "sample_grid_steps", "average"), ("samples",)),
}
"""Keys that decide something under these rollouts only."""


def resolve_recipe(presets: Presets, config: str | Path | None = None, overrides: Overrides = ()) -> Recipe:
    """Preset < YAML file < overrides. Raises `InputError`, one line."""
    given = given_keys(config, overrides)
    train = given.get("train", "lora")
    preset = presets.get(train, {}) if isinstance(train, str) else {}
    preset = {**preset, **_of_another_rollout(preset, given)}
    if "rollout" not in given:  # who states one knows
        rollout = preset.get("rollout", Recipe.model_fields["rollout"].default)
        idle = _idle(given, rollout)
        given = {key: value for key, value in given.items() if key not in idle}
    return build_recipe({"train": train, **preset, **given})


def _of_another_rollout(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset of finished samples becomes where something is given that they have no form for.

    A rollout of trajectories, or an objective of two estimates, goes with the paper's loss for the paper's student; a
    loss of x0 with no weights of the diffusion loss.
    """
    if preset.get("rollout") != "samples":
        return {}
    keys: tuple[str, ...] = ()
    if given.get("rollout") in ("pool", "truncated") and given.get("pool_target", "estimate") == "estimate":
        keys = ("loss", "loss_weighting", "student_prompt_dropout")
    elif "rollout" not in given and given.get("objective", "tdft") != "tdft":
        keys = ("rollout", "loss", "loss_weighting", "student_prompt_dropout")
    elif given.get("loss", "denoising") != "denoising":
        keys = ("loss_weighting",)
    changed = {key: PAPER[key] for key in keys if key not in given}
    if changed:
        what = ", ".join(f"{key} {value}" for key, value in changed.items())
        log.info("%s, as in --config paper: the default's are for finished samples", what)
    return changed


def model_of(config: str | Path | None, overrides: Overrides) -> str | None:
    """The base model that is asked for, by which the presets are found that the other keys are merged with."""
    given = given_keys(config, overrides)
    return build_recipe({"model": given.get("model")}).model


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from its keys; what pydantic finds wrong becomes one `InputError`."""
    _check_keys(values, "recipe")
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise InputError("recipe: " + "; ".join(explain(e) for e in error.errors())) from None


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """Keys that differ and may not differ on resume."""
    before, after = old.model_dump(), new.model_dump()
    free = FREE_ON_RESUME - {"steps", "recommended"} if new.rounds > 1 else FREE_ON_RESUME  # they decide its rounds
    if new.samples is None:  # as many as there are
        free |= {"samples"}
    return [key for key in before if key not in free and before[key] != after[key]]


def given_keys(config: str | Path | None, overrides: Overrides) -> dict[str, Any]:
    """What its user says of a recipe."""
    file = {} if config is None else read_yaml(Path(config))
    given = dict(overrides) if isinstance(overrides, Mapping) else parse_overrides(overrides)
    _check_keys(file, f"{config}")
    _check_keys(given, "--set")
    return {**settled(file, f"{config}"), **settled(given, "--set")}


def _idle(given: Mapping[str, Any], rollout: str) -> list[str]:
    """Keys that decide nothing under the preset's rollout; each is named."""
    idle = [key for key, rollouts in _ROLLOUTS.items() if given.get(key) is not None and rollout not in rollouts]
    for key in idle:
        log.warning(
            "%s changes nothing: it is of rollout %s, and this recipe's is %s; set rollout too%s",
            key,
            " or ".join(_ROLLOUTS[key]),
            rollout,
            ", or begin with --config paper" if "pool" in _ROLLOUTS[key] else "",
        )
    return idle


def _check_keys(values: Mapping[Any, Any], source: str) -> None:
    known = list(Recipe.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise InputError(f"{source}: unknown key '{key}': {hint}")
