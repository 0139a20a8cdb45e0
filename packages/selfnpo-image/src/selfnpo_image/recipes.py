"""Training presets: what a recipe holds before a file or `--set` changes it, by default and as `--config paper` has it.

With full weights the paper's are Self-NPO's published settings (2505.11777): teacher guidance −1, a grid of 25 steps,
EMA 0.999, pseudo-Huber; for SD1.5 learning rate 1e-6 and 1,000 updates of 20 rows, for SDXL 1e-7, 10 rows, teacher
guidance −5 and gradient checkpointing. There are none for SD3: its presets carry SDXL's over, with the teacher of
SD1.5, and have not been tuned.
"""

from typing import Any

from selfnpo_core.training.presets import PAPER
from selfnpo_core.training.recipe import Presets

_COMMON: dict[str, Any] = {
    **PAPER,
    "steps": 1000,
    "batch_size": 20,
    "sample_every": 250,
}
SD15_PAPER: Presets = {
    "full": {**_COMMON, "learning_rate": 1e-6},
    "lora": {**_COMMON, "learning_rate": 1e-4, "rank": 32, "targets": "attention"},
}

_LARGE: dict[str, Any] = {
    **_COMMON,
    "batch_size": 10,
    "pool_size": 100,
    "teacher_guidance": -5.0,
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
}
SDXL_PAPER: Presets = {
    "full": {**_LARGE, "learning_rate": 1e-7},
    "lora": {**_LARGE, "learning_rate": 1e-4, "rank": 32, "targets": "attention"},
}
SD3_PAPER: Presets = {
    "full": {**_LARGE, "teacher_guidance": -1.0, "learning_rate": 1e-6},
    "lora": {**_LARGE, "teacher_guidance": -1.0, "learning_rate": 1e-4, "rank": 32, "targets": "attention"},
}

_DEMO: dict[str, Any] = {
    **PAPER,
    "steps": 200,
    "batch_size": 32,
    "pool_size": 256,
    "student_prompt_dropout": 0.5,
    "embeddings_cache": None,
    "samples_cache": None,
    "recommended": {"beta": 0.5, "guidance_scale": (2.0, 5.0)},
}
DEMO_PAPER: Presets = {
    "full": {**_DEMO, "learning_rate": 5e-5},
    "lora": {**_DEMO, "learning_rate": 1e-3, "rank": 16, "targets": "all"},
}
"""The first recipe as it was tuned to a demo of before, with its captions."""

SD15: Presets = SD15_PAPER
SDXL: Presets = SDXL_PAPER
SD3: Presets = SD3_PAPER

_SAMPLED: dict[str, Any] = {
    "steps": 600,
    "batch_size": 32,
    "rollout": "samples",
    "samples": 2000,
    "uses": 10,
    "sample_guidance": 2.0,
    "sample_grid_steps": 10,
    "loss": "denoising",
    "loss_weighting": "snr",
    "student_prompt_dropout": 1.0,
    "embeddings_cache": None,
    "samples_cache": None,
    "recommended": {"beta": 1.0, "guidance_scale": (2.0, 3.0)},
}
DEMO: Presets = {
    "full": {**_SAMPLED, "learning_rate": 5e-5},
    "lora": {**_SAMPLED, "learning_rate": 1e-3, "rank": 16, "targets": "all"},
}
"""Finished samples of ordinary guidance, by the diffusion loss, under the null prompt only."""
