"""Measure what is claimed: memory of streaming and of training by windows, what is seen at the seams of long clips.

Figures go to docs/results as JSON.

    python tools/benchmark.py memory
    python tools/benchmark.py long --npo RUN

Compared figures come from one run on one machine. Memory is the peak of the tensors' bytes that torch's profiler sees,
on models of the video demo's size with random weights, for which memory is the same as for trained ones.
"""

import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from tqdm import tqdm

from selfnpo_core.adapters import attach_npo
from selfnpo_core.evaluation import bootstrap
from selfnpo_core.profiling import peak_tensor_bytes
from selfnpo_core.training import Recipe, build_recipe, train
from selfnpo_core.worlds import Task, World, judge
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.demo import moving, world
from selfnpo_video.demo.build import denoiser, vae
from selfnpo_video.long import default_overlap, window_starts, windowed
from selfnpo_video.sampling import Settings, draw
from selfnpo_video.shapes import ClipSize
from selfnpo_video.streaming import decode_stream, encode_stream

SIDE = 64
SEAMS, WITHIN, SHORT = "beside the seams", "within the windows", "clips of the trained length"


@click.group(help=__doc__)
def main() -> None:
    torch.manual_seed(0)


@main.command("memory")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/video-memory.json"))
@click.option("--latent-frames", default="33,65,129", show_default=True)
@click.option("--windows", default="3,5,9,17,33", show_default=True, help="Latent frames of a training window.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def memory(output: Path, latent_frames: str, windows: str, threads: int) -> None:
    """Streaming decode and encode against the whole clip's, and training by windows against whole clips."""
    if threads:
        torch.set_num_threads(threads)
    autoencoder = vae.build().eval()
    lengths, sizes = ([int(n) for n in text.split(",")] for text in (latent_frames, windows))
    figures = {
        "schema": 1,
        "command": _command(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}, float32",
        "unit": "bytes of tensors at the peak, beyond what was there before",
        "clip": f"{SIDE}×{SIDE} pixels",
        "decode": [_decode(autoencoder, frames) for frames in lengths],
        "encode": [_encode(autoencoder, frames) for frames in lengths],
        "training": _training(sizes),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(figures, indent=1))


@main.command("long")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/video-long.json"))
@click.option("--clips", default=128, show_default=True)
@click.option("--frames", default=33, show_default=True, help="9 latent frames; the demo model was trained on 3.")
@click.option("--guidance-scale", default=3.0, show_default=True)
@click.option("--npo", type=click.Path(exists=True), required=True, help="Negative weights: a run of the demo model.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def long(output: Path, clips: int, frames: int, guidance_scale: float, npo: str, threads: int) -> None:
    """What the demo's oracle reads beside the seams of long clips, in their windows, and in clips of usual length."""
    if threads:
        torch.set_num_threads(threads)
    demo = moving.demo()
    pipe, task = demo.pipeline(), Task.draw(demo.world, clips, seed=4)
    window = (world.FRAMES - 1) // 4 + 1
    settings = Settings(
        guidance_scale=guidance_scale,
        steps=demo.steps,
        size=ClipSize(frames=frames, height=SIDE, width=SIDE),
        batch_size=16,
        window=world.FRAMES,
    )
    usual = replace(settings, size=ClipSize(frames=world.FRAMES, height=SIDE, width=SIDE), window=None)
    with attach_npo(pipe, npo):
        short = _clips(pipe, task, usual)
    with windowed(pipe.transformer, window), attach_npo(pipe, npo):
        data = _clips(pipe, task, settings)
    right = {
        name: torch.stack(
            [judge(demo.world, data[:, :, first : first + world.FRAMES], task.labels).right for first in firsts]
        )
        for name, firsts in parts_of(frames, window).items()
    }
    right[SHORT] = judge(demo.world, short, task.labels).right[None]
    figures = {
        "schema": 1,
        "command": _command(),
        "clips": clips,
        "frames": frames,
        "guidance scale": guidance_scale,
        "windows begin at latent frames": window_starts((frames - 1) // 4 + 1, window, default_overlap(window)),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}",
        "accuracy, with 95 % intervals": {
            **{name: _accuracy(demo.world, some.float().mean(dim=0)) for name, some in right.items()},
            f"{SEAMS} less {WITHIN}": _accuracy(
                demo.world, right[SEAMS].float().mean(dim=0) - right[WITHIN].float().mean(dim=0)
            ),
        },
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(figures, indent=1))


def _command() -> str:
    return shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]])


def _clips(pipe: Any, task: Task, settings: Settings) -> torch.Tensor:
    """(N, 3, F, H, W) uint8."""
    drawn = tqdm(draw(pipe, task.prompts, task.seeds, settings), total=len(task.prompts), unit="clip")
    return torch.stack([torch.from_numpy(frames).permute(3, 0, 1, 2) for _, frames in drawn])


def parts_of(frames: int, window: int) -> dict[str, list[int]]:
    """First frames of the parts of a trained length that are read: around the overlaps, and within the windows.

    Latent frame k > 0 is frames 4k − 3 to 4k.
    """
    starts = window_starts((frames - 1) // 4 + 1, window, default_overlap(window))
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


def _decode(autoencoder: Any, frames: int) -> dict[str, Any]:
    z = torch.randn(1, frames, autoencoder.config.latent_channels, SIDE // 8, SIDE // 8)
    scaled = z.permute(0, 2, 1, 3, 4) / autoencoder.config.scaling_factor
    return _compared(
        frames, whole=lambda: autoencoder.decode(scaled).sample, stream=lambda: _drain(decode_stream(autoencoder, z))
    )


def _encode(autoencoder: Any, frames: int) -> dict[str, Any]:
    count = 4 * (frames - 1) + 1

    def pictures() -> Iterable[torch.Tensor]:
        for _ in range(count):
            yield torch.rand(1, 3, 1, SIDE, SIDE) * 2 - 1

    return _compared(
        frames,
        whole=lambda: autoencoder.encode(torch.cat(list(pictures()), dim=2)).latent_dist.mean,
        stream=lambda: encode_stream(autoencoder, pictures(), count),
    )


def _compared(frames: int, **ways: Callable[[], Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"latent frames": frames}
    for name, work in ways.items():
        start = time.perf_counter()
        row[name] = peak_tensor_bytes(work)
        row[f"{name}, seconds"] = round(time.perf_counter() - start, 2)
    return row


def _drain(pieces: Iterable[Any]) -> None:
    for _ in pieces:
        pass


def _training(sizes: list[int]) -> list[dict[str, Any]]:
    """One whole run of one update for every size of window, on clips of the largest size, model and pool included."""
    rows, longest = [], max(sizes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        tokenizer = denoiser.build_tokenizer()
        parts = {"transformer": denoiser.build_transformer(), "text_encoder": denoiser.build_text_encoder(tokenizer)}
        denoiser.assemble(nn.ModuleDict(parts), vae.build(), tokenizer).save_pretrained(folder)
        for size in sizes:
            recipe = build_recipe(
                {
                    "model": str(folder),
                    "train": "lora",
                    "steps": 1,
                    "batch_size": 2,
                    "pool_size": 4,
                    "frames": 4 * (longest - 1) + 1,
                    "height": SIDE,
                    "width": SIDE,
                    "chunk_frames": None if size == longest else size,
                },
            )
            run = Path(name) / "run"

            def update(recipe: Recipe = recipe, run: Path = run) -> None:
                backbone = CogVideoX(str(folder), frames=recipe.frames, height=SIDE, width=SIDE, device="cpu")
                train(backbone, recipe, ["a red circle"], run)

            start = time.perf_counter()
            peak = peak_tensor_bytes(update, grad=True)
            rows.append(
                {
                    "latent frames of the clip": longest,
                    "of the window": size,
                    "peak": peak,
                    "seconds": round(time.perf_counter() - start, 2),
                }
            )
            shutil.rmtree(run)
    return rows


if __name__ == "__main__":
    main()
