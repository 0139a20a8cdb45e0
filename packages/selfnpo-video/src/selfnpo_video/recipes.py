"""Training presets: what a recipe holds before a file or `--set` changes it.

There are no published settings of Self-NPO for video. These carry over what the paper used for images (2505.11777:
teacher guidance −1, a grid of 25 steps, EMA 0.999, pseudo-Huber), with the batch that fits beside a transformer of
billions of parameters; they have not been tuned on the real models.
"""

from typing import Any

from selfnpo_core.training.recipe import Presets
from selfnpo_video.kinds import VideoBase

_COMMON: dict[str, Any] = {
    "steps": 500,
    "batch_size": 1,
    "grad_accumulation": 8,
    "teacher_guidance": -1.0,
    "grid_steps": 25,
    "ema_decay": 0.999,
    "loss": "huber",
    "pool_size": 50,
    "gradient_checkpointing": True,
    "sample_every": 250,
}
_LORA: dict[str, Any] = {"learning_rate": 1e-4, "rank": 64, "targets": "attention"}
COGVIDEOX: Presets = {
    "lora": {**_COMMON, **_LORA, "mixed_precision": "bf16"},
    "full": {**_COMMON, "learning_rate": 1e-6, "mixed_precision": "bf16"},
}


def presets_for(base: VideoBase) -> Presets:
    """The demo's model has its own."""
    if base.shipped:
        from selfnpo_video.demo.recipe import PRESETS

        return PRESETS
    return COGVIDEOX
