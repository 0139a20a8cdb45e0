"""The demo's training presets, found on the shipped model with captions and seeds other than those of its tables."""

from __future__ import annotations

from selfnpo_core.training.recipe import Presets

PRESETS: Presets = {
    "full": {"learning_rate": 5e-5, "steps": 200, "batch_size": 32, "pool_size": 256},
    "lora": {"learning_rate": 1e-3, "steps": 200, "batch_size": 32, "pool_size": 256, "rank": 16, "targets": "all"},
}
