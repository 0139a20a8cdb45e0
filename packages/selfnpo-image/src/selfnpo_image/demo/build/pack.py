"""What the image demo's model must reach to be shipped, and its card."""

MAX_RECONSTRUCTION_FID = 40.0
"""A hundredth of what real pictures' features vary by."""
MIN_JOINT_ACCURACY = 0.6
REFERENCE_PICTURES = 50_000
RECONSTRUCTED_PICTURES = 2_000

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The Self-NPO demo model

A toy, made to show a method in minutes on a CPU: a true `StableDiffusionPipeline` of the SD1.5 classes that draws one
of 32 things, small or large, on a coloured ground at 64×64. It knows nothing beyond them and draws them imperfectly, so
that there is something to gain; figures measured on it say nothing of the size of an effect on real models.

- Data: pictures of Noto Color Emoji (SIL Open Font License 1.1, kept in `selfnpo_core/worlds/noto`), put on grounds by
  code, with captions (`selfnpo_image.demo.world`); no photograph, no person, nothing collected.
- Training: `python tools/build_demo_models.py image`, from random weights, on CPU; 15 % of captions dropped.{history}
- Weights: float16 safetensors; the exponential moving average of training.
- Judges beside it (`oracle.safetensors`, `judge.safetensors`) were trained on the same world by the same script.

| figure | value |
| --- | --- |
{rows}
"""
