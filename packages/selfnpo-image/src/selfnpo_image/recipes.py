"""Training presets: what a recipe holds before a file or `--set` changes it.

For SD1.5 with full weights these are Self-NPO's published settings (2505.11777): learning rate 1e-6, 1,000 updates of
20 rows, teacher guidance −1, a grid of 25 steps, EMA 0.999, pseudo-Huber.
"""

from typing import Any

from selfnpo_core.training.recipe import Presets

_COMMON: dict[str, Any] = {
    "steps": 1000,
    "batch_size": 20,
    "teacher_guidance": -1.0,
    "grid_steps": 25,
    "ema_decay": 0.999,
    "loss": "huber",
    "sample_every": 250,
}
SD15: Presets = {
    "full": {**_COMMON, "learning_rate": 1e-6},
    "lora": {**_COMMON, "learning_rate": 1e-4, "rank": 32, "targets": "attention"},
}


def presets_for(model: str | None) -> Presets:
    """The presets of a model by the name its user gave it."""
    if model == "demo":
        from selfnpo_image.demo.recipe import PRESETS

        return PRESETS
    return SD15
