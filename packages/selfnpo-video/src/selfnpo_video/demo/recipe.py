"""The video demo's training presets, found on the shipped model with captions and seeds other than its tables'."""

from typing import Any

from selfnpo_core.training.recipe import Presets

_COMMON: dict[str, Any] = {
    "steps": 150,
    "batch_size": 16,
    "pool_size": 128,
    "student_prompt_dropout": 0.5,
    "embeddings_cache": None,
    "recommended": {"beta": 0.5, "guidance_scale": (2.0, 5.0)},
}
PRESETS: Presets = {
    "full": {**_COMMON, "learning_rate": 5e-5},
    "lora": {**_COMMON, "learning_rate": 1e-3, "rank": 16, "targets": "attention"},
}
KIND = "full"
"""What the demo trains."""
