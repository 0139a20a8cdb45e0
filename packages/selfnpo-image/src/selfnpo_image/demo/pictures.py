"""The demo's world and its shipped model, as `selfnpo_core.worlds` sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from selfnpo_core.worlds.assets import load_judges
from selfnpo_core.worlds.sheet import lay_out
from selfnpo_core.worlds.things import to_uint8
from selfnpo_core.worlds.world import Demo, Judges, Task, World
from selfnpo_image import shipped
from selfnpo_image.demo import world
from selfnpo_image.demo.judges import Judge, Oracle
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.recipes import DEMO
from selfnpo_image.sd15 import SD15

STEPS, SHOWN = 10, 8
KIND = "lora"
"""What is trained."""
MIDDLE = "mid_block.attentions.0.transformer_blocks"


class Things(World):
    """Pictures of things on a ground."""

    unit = "picture"
    distance = "fid"
    attributes = world.ATTRIBUTES
    shape = (3, world.SIDE, world.SIDE)

    def draw_labels(self, count: int, generator: torch.Generator) -> Tensor:
        return world.draw_labels(count, generator)

    def draw_captions(self, labels: Tensor, generator: torch.Generator) -> list[str]:
        return world.draw_captions(labels, generator)

    def parse_caption(self, text: str) -> list[int] | None:
        return world.parse_caption(text)

    def draw_real(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return world.draw_world(count, generator)

    def draw_samples(
        self, pipe: StableDiffusionPipeline, task: Task, *, guidance_scale: float, steps: int, batch: int
    ) -> Iterator[Tensor]:
        pipe.set_progress_bar_config(disable=True)
        for first in range(0, len(task.prompts), batch):
            part = slice(first, first + batch)
            output = pipe(
                task.prompts[part],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in task.seeds[part]],
                output_type="pt",
            )
            yield to_uint8(output.images.float().cpu())

    def denoiser(self, pipe: StableDiffusionPipeline) -> nn.Module:
        return pipe.unet

    def shipped_judges(self) -> Judges:
        return load_judges(shipped.FOLDER, Oracle(), Judge())


def demo(*, presets: Mapping[str, Any] = DEMO, kind: str = KIND) -> Demo:
    """The shipped model, trained as its recipe says unless told otherwise."""
    return Demo(
        title="the image demo's model: a toy, not a real one",
        about="things on a ground at 64×64",
        world=Things(),
        presets=presets,
        kind=kind,
        backbone=lambda: SD15(find_base("demo")),
        pipeline=lambda: load_pipeline(find_base("demo")),
        captions=world.training_captions,
        show=show,
        steps=STEPS,
        scales=(2.0, 2.5, 3.0),
        samples=256,
        preference=shipped.PREFERRED,
        perturbed=[f"{MIDDLE}.0.attn1"],
        skipped={MIDDLE: [0]},
    )


def show(columns: Mapping[str, Tensor], prompts: Sequence[str], folder: Path) -> str:
    """folder/pictures.png: the first pictures of each arm, one row a prompt. columns: heading → (N, 3, H, W) uint8."""
    lay_out(columns, prompts[:SHOWN]).save(folder / "pictures.png")
    return "pictures.png"
