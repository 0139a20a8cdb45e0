"""What is seen at the seams of clips that are longer than the model was trained on."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import torch
from benchmarks.common import command, machine, threads_option, use_threads, write
from tqdm import tqdm

from selfnpo_core.adapters import attach_npo
from selfnpo_core.evaluation import bootstrap
from selfnpo_core.experiments.measure import judge
from selfnpo_core.worlds.things import to_uint8
from selfnpo_core.worlds.world import Task, World
from selfnpo_video.clips import Settings, draw
from selfnpo_video.demo import moving, world
from selfnpo_video.long import default_overlap, window_starts, windowed
from selfnpo_video.models import KNOWN
from selfnpo_video.shapes import ClipSize

SEAMS, WITHIN, SHORT = "beside the seams", "within the windows", "clips of the trained length"
REAL = "parts of real clips as long"


@click.command("long")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/video-long.json"))
@click.option("--clips", default=128, show_default=True)
@click.option(
    "--frames", default=world.LONGEST, show_default=True, help="5 latent frames; the demo model was trained on 3."
)
@click.option("--guidance-scale", default=3.0, show_default=True)
@click.option("--steps", type=int, help="Denoising steps. Default: the demo's.")
@click.option("--overlap", type=int, help="Latent frames that windows share. Default: half a window.")
@click.option("--place", default=KNOWN["demo"].window_place, show_default=True, help="--window-place of `sample`.")
@click.option("--npo", type=click.Path(exists=True), required=True, help="Negative weights: a run of the demo model.")
@threads_option
def long(
    output: Path,
    clips: int,
    frames: int,
    guidance_scale: float,
    steps: int | None,
    overlap: int | None,
    place: int,
    npo: str,
    threads: int,
) -> None:
    """What the demo's oracle reads beside the seams of long clips, in their windows, and in clips of usual length."""
    use_threads(threads)
    demo = moving.demo()
    pipe, task = demo.pipeline(), Task.draw(demo.world, clips, seed=4)
    window = (world.FRAMES - 1) // 4 + 1
    settings = Settings(
        guidance_scale=guidance_scale,
        steps=steps or demo.steps,
        size=ClipSize(frames=frames, height=world.SIDE, width=world.SIDE),
        batch_size=16,
        window=world.FRAMES,
    )
    usual = replace(settings, size=ClipSize(frames=world.FRAMES, height=world.SIDE, width=world.SIDE), window=None)
    with attach_npo(pipe, npo):
        short = _clips(pipe, task, usual)
    with windowed(pipe.transformer, window, overlap, place=place), attach_npo(pipe, npo):
        data = _clips(pipe, task, settings)
    drawn = world.draw_clips(task.labels, torch.Generator().manual_seed(5), frames)
    real, parts = to_uint8(world.render(drawn)), parts_of(frames, window, overlap)

    def read(of: torch.Tensor, firsts: list[int]) -> torch.Tensor:
        looks = [of[:, :, first : first + world.FRAMES] for first in firsts]
        return torch.stack([judge(demo.world, look, task.labels).right for look in looks])

    right = {name: read(data, firsts) for name, firsts in parts.items()}
    right[REAL] = read(real, sorted(first for firsts in parts.values() for first in firsts))
    right[SHORT] = read(short, [0])
    figures = {
        "schema": 1,
        "command": command(),
        "clips": clips,
        "frames": frames,
        "guidance scale": guidance_scale,
        "windows begin at latent frames": window_starts(
            (frames - 1) // 4 + 1, window, overlap or default_overlap(window)
        ),
        "windows but the first are put at latent frame": place,
        "steps": settings.steps,
        "machine": machine(),
        "accuracy, with 95 % intervals": {
            **{name: _accuracy(demo.world, some.float().mean(dim=0)) for name, some in right.items()},
            f"{SEAMS} less {WITHIN}": _accuracy(
                demo.world, right[SEAMS].float().mean(dim=0) - right[WITHIN].float().mean(dim=0)
            ),
        },
    }
    write(output, figures)


def _clips(pipe: Any, task: Task, settings: Settings) -> torch.Tensor:
    """(N, 3, F, H, W) uint8."""
    drawn = tqdm(draw(pipe, task.prompts, task.seeds, settings), total=len(task.prompts), unit="clip")
    return torch.stack([torch.from_numpy(frames).permute(3, 0, 1, 2) for _, frames in drawn])


def parts_of(frames: int, window: int, overlap: int | None = None) -> dict[str, list[int]]:
    """First frames of the parts of a trained length that are read: around the overlaps, and within the windows.

    Latent frame k > 0 is frames 4k − 3 to 4k.
    """
    starts = window_starts((frames - 1) // 4 + 1, window, overlap or default_overlap(window))
    overlaps = [(after + before + window - 1) / 2 for before, after in pairwise(starts)]
    last = frames - world.FRAMES
    return {
        SEAMS: [min(max(0, round(4 * middle - 5.5)), last) for middle in overlaps],
        WITHIN: [min(4 * start, last) for start in starts],
    }


def _accuracy(of: World, right: torch.Tensor) -> dict[str, Any]:
    """By attribute. right: (clips, attributes), means over a clip's parts, which are no independent samples."""

    def mean(column: torch.Tensor) -> Any:
        generator = torch.Generator().manual_seed(0)
        return bootstrap(lambda rows: column[rows].mean().item(), len(column), generator=generator)

    return {name: mean(right[:, k]) for k, name in enumerate(of.attributes)}
