"""Training presets: what a recipe holds before a file or `--set` changes it, by default and as `--config paper` has it.

By default: finished samples (`selfnpo_core.training.presets`), found on toys, of which the one of clips was helped only
where guidance was too strong. There are no published settings of Self-NPO for video: the paper's carry over what it
used for images (2505.11777: teacher guidance −1, a grid of 25 steps, EMA 0.999, pseudo-Huber). Both have the batch that
fits beside a transformer of billions of parameters; neither has been measured on the real models.

A LoRA is trained in the 16 bits that its base is sampled in, since it learns to correct that very network: fp16 for
CogVideoX-2b, which was trained in it, bf16 for 5b and 1.5, of which fp16 makes NaN. Full weights are float32, and
calculate in bf16, which needs no scaling of the loss: engines that cut the weights have none.
"""

from typing import Any

from selfnpo_core.training.presets import PAPER, SAMPLED, SAMPLED_LORA
from selfnpo_core.training.recipe import Presets

_COMMON: dict[str, Any] = {
    **PAPER,
    "steps": 500,  # half as many as of pictures: one clip has thirteen latent frames to learn from
    "batch_size": 1,  # a clip of 49 frames is 17,550 tokens
    "grad_accumulation": 8,
    "pool_size": 50,  # two at each of 25 grid points, six updates' rows
    "pool_start": 16,  # two updates' rows; all 50 would be 600 forwards of a clip before the first update
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
    "sample_every": 250,
}
_LORA: dict[str, Any] = {
    "learning_rate": 1e-4,  # what LoRAs on it commonly take; none was published
    "rank": 64,
    "targets": "attention",
}
COGVIDEOX_PAPER: Presets = {
    "lora": {**_COMMON, **_LORA},
    "full": {**_COMMON, "learning_rate": 1e-6},  # SD1.5's, as there is no other
}

WAN_PAPER: Presets = COGVIDEOX_PAPER

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
"""The first recipe as it was tuned to a demo of before, with its captions."""
DEMO_KIND = "lora"
"""What the demo trains."""

_SAMPLED: dict[str, Any] = {
    **SAMPLED,
    "steps": 400,  # as on the toy of clips
    "batch_size": 1,
    "grad_accumulation": 8,
    "uses": 16,  # 200 clips: each costs 20 forwards of the whole transformer to draw, an update of it three
    "recommended": {
        "beta": 1.0,
        "guidance_scale": (2.0, 6.0),
    },  # to the models' own; on the toy it helped at strong ones
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
    "sample_every": 250,  # one grid on the way, and one at the end: a clip takes long to draw
    "sample_guidance_scales": (4.0,),  # the middle of what is recommended
}
COGVIDEOX: Presets = {
    "lora": {**_SAMPLED, **SAMPLED_LORA, "learning_rate": 1e-4},  # for 2b, 1,920 wide: as of a UNet's inner levels
    "full": {**_SAMPLED, "learning_rate": 5e-6},  # a twentieth, as on the toy of pictures
}

WAN: Presets = {
    kind: {**preset, "recommended": {"beta": 1.0, "guidance_scale": (2.0, 5.0)}, "sample_guidance_scales": (3.5,)}
    for kind, preset in COGVIDEOX.items()
}
"""CogVideoX's, up to Wan's own guidance scale, for a network 1,536 wide. Not tuned."""

_SAMPLED_DEMO: dict[str, Any] = {
    **SAMPLED,
    "steps": 600,
    "batch_size": 16,
    "embeddings_cache": None,
    "samples_cache": None,
}
DEMO: Presets = {
    "full": {**_SAMPLED_DEMO, "learning_rate": 5e-5},
    "lora": {**_SAMPLED_DEMO, **SAMPLED_LORA, "learning_rate": 1e-3},
}


def in_bits_of(presets: Presets, dtype: str) -> Presets:
    """A family's presets for a base that is sampled in "fp16", "bf16" or "fp32": its LoRA is trained in these."""
    return {**presets, "lora": {**presets["lora"], "mixed_precision": "no" if dtype == "fp32" else dtype}}
