"""Recipe presets of the image families: settings by what is trained.

The full-weight settings are those published for SD1.5 (2505.11777). A LoRA wants a higher rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfnpo_core.training.recipe import Presets

SD15: Presets = {
    "full": {"learning_rate": 1e-6, "steps": 1000, "batch_size": 20, "sample_every": 250},
    "lora": {"learning_rate": 1e-4, "steps": 1000, "batch_size": 20, "rank": 16, "sample_every": 250},
}

DEMO: Mapping[str, Mapping[str, Any]] = {
    "full": {"learning_rate": 5e-5, "steps": 200, "batch_size": 32, "pool_size": 256},
    "lora": {"learning_rate": 1e-3, "steps": 200, "batch_size": 32, "pool_size": 256, "rank": 16, "targets": "all"},
}


def presets_for(model: str) -> Presets:
    return DEMO if model == "demo" else SD15
