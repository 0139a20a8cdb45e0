"""The demo's training presets, found on the shipped model with captions and seeds other than those of its tables."""

from __future__ import annotations

from typing import Any

from selfnpo_core.training.recipe import Presets

_COMMON: dict[str, Any] = {
    "steps": 200,
    "batch_size": 32,
    "pool_size": 256,
    "student_prompt_dropout": 0.5,
    "embeddings_cache": None,
    "recommended": {"beta": 0.5, "guidance_scale": (2.0, 5.0)},
}
PRESETS: Presets = {
    "full": {**_COMMON, "learning_rate": 5e-5},
    "lora": {**_COMMON, "learning_rate": 1e-3, "rank": 16, "targets": "all"},
}
KIND = "full"
"""What the demo trains: on this model, LoRAs of the same effect helped less."""
