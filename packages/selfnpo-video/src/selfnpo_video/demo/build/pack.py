"""What the video demo's model must reach to be shipped, and its card."""

MAX_RECONSTRUCTION_FVD = 6.4
"""A tenth of what real clips' features vary by: 64 of them, of unit variance on average."""
MIN_ACCURACY = 0.6
REFERENCE_CLIPS = 10_000
RECONSTRUCTED_CLIPS = 1_000

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---
# The Self-NPO video demo model

A toy, made to show a method in minutes on a CPU: a true `CogVideoXPipeline` of CogVideoX's classes that draws one of
16 things, moving slowly or quickly one of four ways, nine frames at 32×32. It knows nothing beyond them and draws them
imperfectly, so that there is something to gain; figures measured on it say nothing of the size of an effect on real
models.

- Data: pictures of Noto Color Emoji (SIL Open Font License 1.1, kept in `selfnpo_core/worlds/noto`), moved over grounds
  by code, with captions (`selfnpo_video.demo.world`); no photograph, no person, nothing collected.
- Training: `python tools/build_demo_models.py video`, from random weights; 15 % of the captions dropped.{history}
- Weights: float16 safetensors; the exponential moving average of training.
- Judges beside it (`oracle.safetensors`, `judge.safetensors`) were trained on the same world by the same script.

| figure | value |
| --- | --- |
{rows}
"""
