"""Training presets: what a recipe holds before a file or `--set` changes it, by default and as `--config paper` has it.

By default: finished samples (`selfnpo_core.training.presets`), as measured on a toy of SD1.5's class, 32 wide: 600
updates of 32 rows, Adam at 1e-3 for a LoRA and 5e-5 for all weights. On all larger models nothing has been measured:
the toy's values are carried over, rates by width. Those of Qwen-Image, Z-Image and FLUX.2 [klein] are SD3's at their
widths. None has been tuned.

With full weights the paper's are Self-NPO's published settings (2505.11777): teacher guidance −1, a grid of 25 steps,
EMA 0.999, pseudo-Huber; for SD1.5 learning rate 1e-6 and 1,000 updates of 20 rows, for SDXL 1e-7, 10 rows, teacher
guidance −5 and gradient checkpointing. There are none for flow models: their presets carry SDXL's over, with the
teacher of SD1.5, and have not been tuned.

SDXL's −5 is that of the target alone here. The published code walks under it too, but only five of 25 steps, from a
picture of a data set that was noised to a random point: what it trains on is still near a picture. The pool walks
all steps, from noise, where −5 leads to what no sample looks like: on a toy x_t ended with 2.8 times the spread of
data, and x̂0 had values up to 41. So trajectories are advanced under the prompt without guidance
(`advance_guidance` 0), which draws from the model's own distribution given a caption, as near to captioned pictures
as can be had without any. Both are made of one look of two branches, which −5 needs anyhow. SD1.5's −1 is kept for
both: from noise it loses contrast (a spread of 0.65 there), but stays a sample's size, and costs one branch.
"""

from typing import Any

from selfnpo_core.training.presets import PAPER, SAMPLED, SAMPLED_LORA
from selfnpo_core.training.recipe import Presets

_COMMON: dict[str, Any] = {
    **PAPER,  # with no null prompts for the student, as published, although on toys they cost it what was learnt
    "steps": 1000,
    "batch_size": 20,
    "sample_every": 250,  # four grids in a run
}
_LORA: dict[str, Any] = {
    "learning_rate": 1e-4,  # what LoRAs of this width commonly take; none was published
    "rank": 32,
    "targets": "attention",
}
SD15_PAPER: Presets = {
    "full": {**_COMMON, "learning_rate": 1e-6},
    "lora": {**_COMMON, **_LORA},
}

_LARGE: dict[str, Any] = {
    **_COMMON,
    "batch_size": 10,
    "pool_size": 100,  # ten updates' rows
    "mixed_precision": "bf16",  # no overflow, and under a LoRA half the base's memory
    "gradient_checkpointing": True,
}
_SDXL: dict[str, Any] = {**_LARGE, "teacher_guidance": -5.0, "advance_guidance": 0.0}
SDXL_PAPER: Presets = {
    "full": {**_SDXL, "learning_rate": 1e-7},
    "lora": {**_SDXL, **_LORA},
}
SD3_PAPER: Presets = {
    "full": {**_LARGE, "learning_rate": 1e-6},
    "lora": {**_LARGE, **_LORA},
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

_SAMPLED: dict[str, Any] = {
    **SAMPLED,
    "steps": 600,  # as on the toy; 2,000 did a little better there, at three times the cost
    "uses": 20,  # 960 pictures: half the toy's samples did as well there, at half the price of drawing them
    "batch_size": 16,  # two times 16 are the toy's 32 rows
    "grad_accumulation": 2,
    "sample_every": 250,  # two grids on the way, and one at the end
    "recommended": {"beta": 1.0, "guidance_scale": (2.0, 4.0)},  # the toy's, and some way to those that are in use
    "sample_guidance_scales": (3.0,),  # the middle
}
SD15: Presets = {
    "full": {**_SAMPLED, "learning_rate": 5e-6},  # the toy's rates at a tenth, SD1.5 being ten times as wide
    "lora": {**_SAMPLED, **SAMPLED_LORA, "learning_rate": 1e-4},
}

_SAMPLED_LARGE: dict[str, Any] = {
    **_SAMPLED,
    "batch_size": 4,  # the same 32 rows, in what one GPU holds
    "grad_accumulation": 8,
    "mixed_precision": "bf16",  # no overflow, and under a LoRA half the base's memory
    "gradient_checkpointing": True,
}
SDXL: Presets = {
    "full": {**_SAMPLED_LARGE, "learning_rate": 5e-6},  # SDXL's first level is as wide as SD1.5's
    "lora": {**_SAMPLED_LARGE, **SAMPLED_LORA, "learning_rate": 1e-4},
}
SD3: Presets = {
    "full": {**_SAMPLED_LARGE, "learning_rate": 5e-6},  # 1,536 wide, about as the inner levels of the UNets (1,280)
    "lora": {**_SAMPLED_LARGE, **SAMPLED_LORA, "learning_rate": 1e-4},
}


def _of_width(width: int, **own: Any) -> Presets:
    """SD3's for a wider network, rates as 1/width (2203.03466)."""
    factor = 1536 / width
    return {
        train: {**preset, **own, "learning_rate": float(f"{preset['learning_rate'] * factor:.2g}")}
        for train, preset in SD3.items()
    }


def without_guidance(presets: Presets, steps: int) -> Presets:
    """For a distilled model of the family: it draws as it is meant to, in so many steps, and learns its own samples
    under their prompts.

    Added to the model, what is learned undoes the distillation, as far as such samples tell; taken off it, w·δ is Neon
    (2510.03597). w is what Neon's weights are first tried with, and has been tuned no more than the rest.
    """
    own: dict[str, Any] = {
        "sample_guidance": 1.0,
        "sample_grid_steps": steps,
        "student_prompt_dropout": 0.0,
        "sample_every": 0,  # grids show a negative branch
        "recommended": {"beta": 1.0, "guidance_scale": (1.0, 1.0), "rule": {"name": "neon", "weight": 1.0}},
        "sample_guidance_scales": (1.0,),
    }
    return {train: {**preset, **own} for train, preset in presets.items()}


QWEN_IMAGE = _of_width(3072, batch_size=1, grad_accumulation=32)  # 41 GB in bf16, whatever else
Z_IMAGE = _of_width(3840)
FLUX2_KLEIN = _of_width(3072)

_SAMPLED_DEMO: dict[str, Any] = {
    **SAMPLED,
    "steps": 600,
    "batch_size": 32,
    "samples": 2000,
    "embeddings_cache": None,
    "samples_cache": None,
}
DEMO: Presets = {
    "full": {**_SAMPLED_DEMO, "learning_rate": 5e-5},
    "lora": {**_SAMPLED_DEMO, **SAMPLED_LORA, "learning_rate": 1e-3},
}
