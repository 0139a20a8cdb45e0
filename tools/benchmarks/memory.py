"""Streaming decode and encode, and training by windows, on models of the video demo's size with random weights.

Memory is the peak of the tensors' bytes that torch's profiler sees; random weights take as
much as trained ones.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import torch
from benchmarks.common import command, machine, threads_option, use_threads, write
from torch import nn

from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training import Recipe, build_recipe, train
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.demo.build import denoiser, vae
from selfnpo_video.demo.world import SIDE
from selfnpo_video.families import find_base
from selfnpo_video.streaming import decode_stream, encode_stream


@click.command("memory")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/video-memory.json"))
@click.option("--latent-frames", default="33,65,129", show_default=True)
@click.option("--windows", default="3,5,9,17,33", show_default=True, help="Latent frames of a training window.")
@threads_option
def memory(output: Path, latent_frames: str, windows: str, threads: int) -> None:
    """Streaming decode and encode against the whole clip's, and training by windows against whole clips."""
    use_threads(threads)
    autoencoder = vae.build().eval()
    lengths, sizes = ([int(n) for n in text.split(",")] for text in (latent_frames, windows))
    figures = {
        "schema": 1,
        "command": command(),
        "machine": f"{machine()}, float32",
        "unit": "bytes of tensors at the peak, beyond what was there before",
        "clip": f"{SIDE}×{SIDE} pixels",
        "decode": [_decode(autoencoder, frames) for frames in lengths],
        "encode": [_encode(autoencoder, frames) for frames in lengths],
        "training": _training(sizes),
    }
    write(output, figures)


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
                    "embeddings_cache": None,
                },
            )
            run = Path(name) / "run"

            def update(recipe: Recipe = recipe, run: Path = run) -> None:
                base = find_base(str(folder))
                backbone = CogVideoX(base, frames=recipe.frames, height=SIDE, width=SIDE, device="cpu")
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
