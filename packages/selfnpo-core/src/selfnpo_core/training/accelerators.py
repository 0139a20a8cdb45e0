"""Accelerate's objects, built from a recipe: the accelerator, the optimizer, the learning rate, the trackers."""

import importlib.util
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration
from torch import nn

from selfnpo_core.errors import InputError
from selfnpo_core.training.recipe import Recipe

AMP = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_accelerator(recipe: Recipe, logs: Path | None = None) -> Accelerator:
    """One process on the best device. Accelerate's global state is made anew, so runs may follow one another."""
    if recipe.engine not in ("auto", "ddp") or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"engine {recipe.engine} on {os.environ.get('WORLD_SIZE', '1')} process(es): this version trains in one "
            "process; use engine=auto without a launcher"
        )
    cpu = recipe.device == "cpu"
    if recipe.mixed_precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise InputError("mixed_precision fp16 needs a CUDA GPU: use bf16 or no")
    _check_packages(recipe)
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.grad_accumulation,
        cpu=cpu,
        log_with=list(recipe.trackers) or None,
        project_config=None if logs is None else ProjectConfiguration(str(logs.parent), logging_dir=str(logs)),
    )


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Begin logging with the recipe as the run's configuration."""
    if recipe.trackers:
        plain = {key: _plain(value) for key, value in recipe.model_dump().items()}
        accelerator.init_trackers(recipe.project, config=plain)


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (1711.05101), or its 8-bit form (2110.02861)."""
    settings: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": (recipe.adam_beta1, recipe.adam_beta2),
        "weight_decay": recipe.weight_decay,
    }
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **settings)
    return optimizer


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of update `step`, the first being 1: linear warm-up, then the schedule down to `steps`."""
    warm = min(1.0, step / (recipe.warmup_steps + 1))
    left = max(1, recipe.steps - recipe.warmup_steps)
    done = min(1.0, max(0.0, (step - 1 - recipe.warmup_steps) / left))
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return recipe.learning_rate * warm * factor[recipe.lr_schedule]


def seed_for(*parts: int) -> int:
    """One seed from several numbers, such as (seed, rank, step), without visible relation between neighbours."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check_packages(recipe: Recipe) -> None:
    wanted: dict[str, str] = {name: name for name in recipe.trackers}
    if recipe.optimizer == "adamw8bit":
        wanted["adamw8bit"] = "bitsandbytes"
    for setting, package in wanted.items():
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{setting} needs the package {package}: pip install {package}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else str(value)
