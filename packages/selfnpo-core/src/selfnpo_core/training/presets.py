"""What a recipe begins with: a family's presets, by default or by a name given where a recipe file could be.

By default (`SAMPLED`) the base draws finished samples with ordinary guidance, and the negative weights learn them by
the diffusion loss, under the null prompt only (SIMS, 2408.16333, and Neon, 2510.03597, carried to the null branch).
What is saved is a moving average of them: what one batch after another leaves in the last ones is noise, which a judge
sees. It was found on toys, where it helped and the paper's recipe did not; on large models nothing has been measured.

`--config paper` (`PAPER`) is Self-NPO's own recipe (2505.11777), as far as a family's models allow: a teacher of w = −1
that is an average of decay 0.999, on a grid of 25 steps, pseudo-Huber, no null prompts for the student; trajectories
are those of the pool, which needs no pictures. It stays what it is when defaults change.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from selfnpo_core.errors import InputError
from selfnpo_core.models.base import Widths
from selfnpo_core.training.recipe import Presets, Recipe

NAMES: Final = ("paper",)
PAPER: Mapping[str, Any] = {
    "lr_schedule": "constant",
    "warmup_steps": 0,
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "rank": 16,
    "lora_alpha": None,
    "targets": "attention",
    "objective": "tdft",
    "loss": "huber",
    "loss_weighting": "none",
    "teacher_guidance": -1.0,
    "advance_guidance": None,
    "student_prompt_dropout": 0.0,
    "ema_decay": 0.999,
    "rollout": "pool",
    "grid_steps": 25,
    "truncation_steps": 5,
    "pool_size": 256,
    "pool_target": "estimate",
    "negative_condition": "null",
    "recommended": {"beta": 1.0, "alpha": 1.0, "guidance_scale": (3.0, 8.0)},
}
"""What all families share of it: what would be of another recipe if a default changed."""

SAMPLED: Mapping[str, Any] = {
    "objective": "tdft",
    "loss": "denoising",
    "loss_weighting": "snr",
    "student_prompt_dropout": 1.0,
    "average": 0.15,
    "rollout": "samples",
    "samples": None,
    "uses": 10,
    "sample_guidance": 2.0,
    "sample_grid_steps": 10,
    "negative_condition": "null",
    "recommended": {"beta": 1.0, "guidance_scale": (2.0, 3.0)},
}
"""What all families share of the default. Guidance scales: those at which it was measured to help; sampling takes their
middle."""
SAMPLED_LORA: Mapping[str, Any] = {"rank": 16, "targets": "all"}
"""The LoRA of it: on all layers it did better than on attention alone."""

LARGEST_CHANGE: Final = 10.0


def for_width(presets: Presets, widths: Widths | None) -> Presets:
    """A family's presets for a base of another width: the learning rate falls as 1/width.

    That is Adam's rule for hidden matrices under maximal update parametrisation (2203.03466): 1e-3, measured on a UNet
    32 wide, is 1e-4 at 320, the rate in common use. By a factor of ten at most, either way: that is as far apart as
    these two are, and beyond them nothing has been seen to train at what the rule would ask for. Without widths presets
    are as they are.
    """
    factor = _factor(widths)
    if factor == 1:
        return presets
    return {
        train: {**preset, "learning_rate": float(f"{preset['learning_rate'] * factor:.3g}")}
        for train, preset in presets.items()
    }


def why_rate(recipe: Recipe, given: Collection[str], widths: Widths | None) -> str | None:
    """A line on a learning rate that `for_width` made, if the recipe has it. given: the keys that its user set."""
    rate, factor = recipe.learning_rate, _factor(widths)
    if widths is None or factor == 1 or "learning_rate" in given:
        return None
    clamped = "" if factor == widths.family / widths.base else f", {LARGEST_CHANGE:g} times being the most"
    return (
        f"learning rate {rate:g}: the family's {rate / factor:.2g} at width {widths.family}, "
        f"for a network {widths.base} wide{clamped}"
    )


def _factor(widths: Widths | None) -> float:
    if widths is None:
        return 1.0
    return min(max(widths.family / widths.base, 1 / LARGEST_CHANGE), LARGEST_CHANGE)


def name_or_file(config: str | None) -> tuple[str | None, str | None]:
    """What `--config` says: the name of a recipe, or else a file. Raises `InputError` for what is neither."""
    if config is None or config in NAMES:
        return config, None
    if not Path(config).suffix and not Path(config).exists():
        raise InputError(f"--config {config}: there is no such file, and recipes by name are {', '.join(NAMES)}")
    return None, config
