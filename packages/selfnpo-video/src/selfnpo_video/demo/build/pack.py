"""What the video demo's model must reach to be shipped, and its card."""

MAX_RECONSTRUCTION_FVD = 6.4
"""A tenth of what real clips' features vary by: 64 of them, of unit variance on average."""
MIN_ACCURACY = 0.8
REFERENCE_CLIPS = 10_000
RECONSTRUCTED_CLIPS = 1_000

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---
# The Self-NPO video demo model

A toy, made to show a method in minutes on a CPU: a true `CogVideoXPipeline` of CogVideoX's classes that draws one
coloured shape in motion, nine frames at 64×64. It knows nothing beyond that, and figures measured on it say nothing of
the size of an effect on real models.

- Data: clips drawn by code, with captions (`selfnpo_video.demo.world`); no photograph, no person, nothing collected.
- Training: `python tools/build_demo_models.py video`, from random weights; 15 % of the captions dropped.{history}
- Weights: float16 safetensors; the exponential moving average of training.
- Judges beside it (`oracle.safetensors`, `judge.safetensors`) were trained on the same world by the same script.

| figure | value |
| --- | --- |
{rows}
"""
