"""Recipes that go by a name wherever a recipe file does, so `--config paper`.

A family's presets are what a recipe begins with; for a name it has others in their place. `paper` is Self-NPO's own
recipe (2505.11777), as far as a family's models allow: a teacher of w = −1 that is an average of decay 0.999, on a grid
of 25 steps, pseudo-Huber, no null prompts for the student; the trajectories are those of the pool, which needs no
pictures. It stays what it is when defaults change.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from selfnpo_core.errors import InputError

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


def name_or_file(config: str | None) -> tuple[str | None, str | None]:
    """What `--config` says: the name of a recipe, or else a file. Raises `InputError` for what is neither."""
    if config is None or config in NAMES:
        return config, None
    if not Path(config).suffix and not Path(config).exists():
        raise InputError(f"--config {config}: there is no such file, and recipes by name are {', '.join(NAMES)}")
    return None, config
