"""The video demo's world and its shipped model, as `selfnpo_core.worlds` sees them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from selfnpo_core.worlds.assets import load_judges
from selfnpo_core.worlds.sheet import lay_out
from selfnpo_core.worlds.world import Demo, Judges, Task, World
from selfnpo_video.clips import Settings, draw
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.demo import assets, world
from selfnpo_video.demo.judges import VideoJudge, VideoOracle
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_pipeline
from selfnpo_video.models import KNOWN
from selfnpo_video.recipes import DEMO as PRESETS
from selfnpo_video.recipes import DEMO_KIND as KIND
from selfnpo_video.shapes import ClipSize
from selfnpo_video.sheets import beside, write_sheet
from selfnpo_video.video_files import write_video

STEPS = 10
SHOWN, FEW, ZOOM = 12, 6, 4


class MovingThings(World):
    """Clips of one thing in motion."""

    unit = "clip"
    distance = "fvd"
    attributes: ClassVar[Mapping[str, Sequence[str]]] = world.ATTRIBUTES
    shape: ClassVar[tuple[int, ...]] = (3, world.FRAMES, world.SIDE, world.SIDE)

    def draw_labels(self, count: int, generator: torch.Generator) -> Tensor:
        return world.draw_labels(count, generator)

    def draw_captions(self, labels: Tensor, generator: torch.Generator) -> list[str]:
        return world.draw_captions(labels, generator)

    def parse_caption(self, text: str) -> list[int] | None:
        return world.parse_caption(text)

    def draw_real(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return world.draw_world(count, generator)

    def draw_samples(self, pipe: Any, task: Task, *, guidance_scale: float, steps: int, batch: int) -> Iterator[Tensor]:
        size = ClipSize(frames=world.FRAMES, height=world.SIDE, width=world.SIDE)
        settings = Settings(guidance_scale=guidance_scale, steps=steps, size=size, batch_size=batch)
        for _, frames in draw(pipe, task.prompts, task.seeds, settings):
            yield torch.from_numpy(frames).permute(3, 0, 1, 2)[None]

    def denoiser(self, pipe: Any) -> nn.Module:
        return pipe.transformer

    def shipped_judges(self) -> Judges:
        return load_judges(assets.FOLDER, VideoOracle(), VideoJudge())


def demo(*, presets: Mapping[str, Any] = PRESETS, kind: str = KIND) -> Demo:
    """The shipped model, trained as its recipe says unless told otherwise."""
    return Demo(
        title="the video demo's model: a toy, not a real one",
        about="one thing in motion, nine frames at 32×32",
        world=MovingThings(),
        presets=presets,
        kind=kind,
        backbone=lambda: CogVideoX(find_base("demo")),
        pipeline=lambda: load_pipeline(find_base("demo")),
        captions=world.training_captions,
        show=show,
        steps=STEPS,
        scales=(2.0, 3.0, 5.0),
        samples=96,
        batch=32,
        perturbed=["transformer_blocks.3.attn1"],  # the middle, as for the DiT of 2403.17377
        skipped={"transformer_blocks": [2]},  # a third of the way, as in SD3.5
    )


def show(columns: Mapping[str, Tensor], prompts: Sequence[str], folder: Path) -> str:
    """folder/clips/*.mp4, both arms side by side under their caption, folder/index.html that plays them all, and
    folder/clips.webp, a sheet of the first few, one row a prompt.

    columns: heading → (N, 3, F, H, W) uint8, two of them.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    (left, right), sections = columns.values(), []
    for index, prompt in enumerate(prompts[: min(SHOWN, len(left))]):
        file = f"clips/{index:05d}.mp4"
        one, other = (enlarged(clips[index].permute(1, 2, 3, 0).numpy()) for clips in (left, right))
        write_video(folder / file, beside(one, other, list(columns), prompt), fps=KNOWN["demo"].fps)
        sections.append((prompt, [(file, " | ".join(columns))]))
    write_sheet(folder, sections)
    few = prompts[: min(FEW, len(left))]
    sheets = (
        np.asarray(lay_out({name: clips[:, :, frame] for name, clips in columns.items()}, few))
        for frame in range(world.FRAMES)
    )
    write_video(folder / "clips.webp", sheets, fps=KNOWN["demo"].fps)
    return "index.html with clips side by side"


def enlarged(frames: np.ndarray) -> np.ndarray:
    """A clip (F, H, W, 3) with every pixel a square of `ZOOM`²: 32 pixels are too few for a player."""
    return frames.repeat(ZOOM, axis=1).repeat(ZOOM, axis=2)
