"""Training presets: what a recipe holds before a file or `--set` changes it, by default and as `--config paper` has it.

There are no published settings of Self-NPO for video. These carry over what the paper used for images (2505.11777:
teacher guidance −1, a grid of 25 steps, EMA 0.999, pseudo-Huber), with the batch that fits beside a transformer of
billions of parameters; they have not been tuned on the real models.
"""

from typing import Any

from selfnpo_core.training.presets import PAPER
from selfnpo_core.training.recipe import Presets

_COMMON: dict[str, Any] = {
    **PAPER,
    "steps": 500,
    "batch_size": 1,
    "grad_accumulation": 8,
    "pool_size": 50,
    "gradient_checkpointing": True,
    "sample_every": 250,
}
_LORA: dict[str, Any] = {"learning_rate": 1e-4, "rank": 64, "targets": "attention"}
COGVIDEOX_PAPER: Presets = {
    "lora": {**_COMMON, **_LORA, "mixed_precision": "bf16"},
    "full": {**_COMMON, "learning_rate": 1e-6, "mixed_precision": "bf16"},
}

_DEMO: dict[str, Any] = {
    **PAPER,
    "steps": 150,
    "batch_size": 16,
    "pool_size": 128,
    "student_prompt_dropout": 0.5,
    "embeddings_cache": None,
    "samples_cache": None,
    "recommended": {"beta": 0.5, "guidance_scale": (2.0, 5.0)},
}
DEMO_PAPER: Presets = {
    "full": {**_DEMO, "learning_rate": 5e-5},
    "lora": {**_DEMO, "learning_rate": 1e-3, "rank": 16, "targets": "attention"},
}
DEMO_KIND = "full"
"""What the demo trains. Its presets were found on the shipped model with captions and seeds other than its tables'."""

COGVIDEOX: Presets = COGVIDEOX_PAPER
DEMO: Presets = DEMO_PAPER
