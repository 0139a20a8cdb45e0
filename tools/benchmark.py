"""Measure what is claimed: memory of streaming and of training by windows, what is seen at the seams of long clips,
what each way to hold negative weights costs, what a LoRA made of an offset of all weights loses, and what the switches
of a recipe that save memory save.

Figures go to docs/results as JSON.

    python tools/benchmark.py memory
    python tools/benchmark.py long --npo RUN
    python tools/benchmark.py modes
    python tools/benchmark.py ranks --npo RUN
    python tools/benchmark.py levers

Compared figures come from one run on one machine. Memory is the peak of the tensors' bytes that torch's profiler sees,
on models of the video demo's size with random weights, for which memory is the same as for trained ones.
"""

import gc
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
from statistics import median
from typing import Any

import click
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from tqdm import tqdm

from selfnpo_core.adapters import NegativeDelta, NegativeLayers, attach_npo
from selfnpo_core.drawing import to_uint8
from selfnpo_core.evaluation import bootstrap
from selfnpo_core.exporting import near_lora
from selfnpo_core.profiling import peak_tensor_bytes
from selfnpo_core.training import Recipe, build_recipe, dry_run, load_npo, train
from selfnpo_core.training.measuring import measure
from selfnpo_core.worlds import Task, World, judge
from selfnpo_image.backbone import save_lora
from selfnpo_image.sd15 import SD15
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.demo import moving, world
from selfnpo_video.demo.build import denoiser, vae
from selfnpo_video.long import default_overlap, window_starts, windowed
from selfnpo_video.models import KNOWN
from selfnpo_video.sampling import Settings, draw
from selfnpo_video.shapes import ClipSize
from selfnpo_video.streaming import decode_stream, encode_stream

SIDE = 64
SEAMS, WITHIN, SHORT = "beside the seams", "within the windows", "clips of the trained length"
REAL = "parts of real clips as long"


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
    _write(output, figures)


@main.command("long")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/video-long.json"))
@click.option("--clips", default=128, show_default=True)
@click.option("--frames", default=33, show_default=True, help="9 latent frames; the demo model was trained on 3.")
@click.option("--guidance-scale", default=3.0, show_default=True)
@click.option("--steps", type=int, help="Denoising steps. Default: the demo's.")
@click.option("--overlap", type=int, help="Latent frames that windows share. Default: half a window.")
@click.option("--place", default=KNOWN["demo"].window_place, show_default=True, help="--window-place of `sample`.")
@click.option("--npo", type=click.Path(exists=True), required=True, help="Negative weights: a run of the demo model.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
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
    if threads:
        torch.set_num_threads(threads)
    demo = moving.demo()
    pipe, task = demo.pipeline(), Task.draw(demo.world, clips, seed=4)
    window = (world.FRAMES - 1) // 4 + 1
    settings = Settings(
        guidance_scale=guidance_scale,
        steps=steps or demo.steps,
        size=ClipSize(frames=frames, height=SIDE, width=SIDE),
        batch_size=16,
        window=world.FRAMES,
    )
    usual = replace(settings, size=ClipSize(frames=world.FRAMES, height=SIDE, width=SIDE), window=None)
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
        "command": _command(),
        "clips": clips,
        "frames": frames,
        "guidance scale": guidance_scale,
        "windows begin at latent frames": window_starts(
            (frames - 1) // 4 + 1, window, overlap or default_overlap(window)
        ),
        "windows but the first are put at latent frame": place,
        "steps": settings.steps,
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}",
        "accuracy, with 95 % intervals": {
            **{name: _accuracy(demo.world, some.float().mean(dim=0)) for name, some in right.items()},
            f"{SEAMS} less {WITHIN}": _accuracy(
                demo.world, right[SEAMS].float().mean(dim=0) - right[WITHIN].float().mean(dim=0)
            ),
        },
    }
    _write(output, figures)


@main.command("modes")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/negative-modes.json"))
@click.option("--side", default=256, show_default=True, help="Height and width of the pictures, in pixels.")
@click.option("--steps", default=2, show_default=True, help="Denoising steps of a call.")
@click.option(
    "--repeats",
    default=3,
    show_default=True,
    help="Calls in each mode, with as many of plain guidance before and after; medians count.",
)
@click.option("--rank", default=32, show_default=True, help="Of mode lowrank, and of the LoRA.")
@click.option("--blocks", default="320,640,1280,1280", show_default=True, help="Widths of the UNet; SD1.5's.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def modes(output: Path, side: int, steps: int, repeats: int, rank: int, blocks: str, threads: int) -> None:
    """Seconds and bytes of every --negative-mode on a UNet of SD1.5's architecture with random weights."""
    if threads:
        torch.set_num_threads(threads)
    pipe = _random_sd15([int(n) for n in blocks.split(",")])
    with tempfile.TemporaryDirectory() as folder:
        lora = _random_lora(pipe, Path(folder), rank)
        ways: dict[str, Callable[[], Any]] = {
            "adapters": lambda: attach_npo(pipe, lora, other_base=True),
            "swap": lambda: NegativeDelta.attach(pipe, _random_offset(pipe)),
            "bf16": lambda: NegativeLayers.attach(pipe, _random_offset(pipe), store="bf16"),
            "int8": lambda: NegativeLayers.attach(pipe, _random_offset(pipe), store="int8"),
            "lowrank": lambda: NegativeLayers.attach(pipe, _random_offset(pipe), store=rank),
        }
        rows, plains = {}, []
        for mode, attach in tqdm(ways.items(), unit="mode"):
            plain = [_seconds(pipe, side, steps) for _ in range(repeats)]
            before = _tensor_bytes()
            with attach():
                held = _tensor_bytes() - before
                own = [_seconds(pipe, side, steps) for _ in range(repeats)]
            plain += [_seconds(pipe, side, steps) for _ in range(repeats)]
            plains += plain
            rows[mode] = {
                "time, in plain guidance's before and after": round(median(own) / median(plain), 3),
                "each call's": [round(seconds / median(plain), 3) for seconds in own],
                "bytes held": held,
            }
    figures = {
        "schema": 1,
        "command": _command(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}, float32",
        "model": f"UNet of SD1.5's architecture, {sum(p.numel() for p in pipe.unet.parameters()):,} random weights",
        "pictures": f"one of {side}×{side}, {steps} steps, two rows a step",
        "plain guidance, seconds a step": round(median(plains) / steps, 3),
        "modes": rows,
    }
    _write(output, figures)


@main.command("ranks")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/lora-ranks.json"))
@click.option("--npo", type=click.Path(exists=True), required=True, help="A run of the image demo with full weights.")
@click.option("--ranks", default="4,8,16,32,64", show_default=True)
def ranks(output: Path, npo: str, ranks: str) -> None:
    """What `export --format lora --rank R` loses of an offset of all weights, on the image demo's model."""
    loaded, backbone = load_npo(npo), SD15("demo", device="cpu")
    rows = []
    for rank in tqdm([int(n) for n in ranks.split(",")], unit="rank"):
        factors, errors = near_lora(loaded, backbone, rank)
        numbers = sum(f.up.numel() + f.down.numel() for f in factors.values())
        rows.append({"rank": rank, "numbers": numbers, **{name: round(error, 4) for name, error in errors.items()}})
    figures = {
        "schema": 1,
        "command": _command(),
        "model": "the image demo's model: a toy, not a real one",
        "relative error": "of the matrices that a LoRA can hold, of all weights, and of the effect on predictions",
        "numbers of the offset": sum(tensor.numel() for tensor in loaded.tensors.values()),
        "ranks": rows,
    }
    _write(output, figures)


@main.command("levers")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/levers.json"))
@click.option("--updates", default=5, show_default=True, help="Timed for each row; the fastest counts.")
@click.option("--threads", default=1, show_default=True, help="CPU threads; 0 leaves torch's choice.")
def levers(output: Path, updates: int, threads: int) -> None:
    """Bytes held in training and seconds an update, with each switch that saves memory, on the demo models."""
    if threads:
        torch.set_num_threads(threads)
    models: dict[str, Callable[[], Any]] = {
        "image demo": lambda: SD15("demo", device="cpu"),
        "video demo, 33 frames": lambda: CogVideoX("demo", frames=33, device="cpu"),
    }
    tables = {}
    for name, load in models.items():
        video = "video" in name
        tables[name] = {
            what: _levers(load, settings, {**changes, **(WINDOW if video else {})}, updates, what)
            for what, settings, changes in (("lora", LORA, LORA_LEVERS), ("full", FULL, FULL_LEVERS))
        }
    figures = {
        "schema": 1,
        "command": _command(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}, float32",
        "models": "the demo models: toys, whose activations are large beside their weights",
        "unit": "bytes of tensors at the peak of an update, by --dry-run and as seen; processor's seconds of an update",
        **tables,
    }
    _write(output, figures)


COMMON: dict[str, Any] = {
    "steps": 100,
    "batch_size": 4,
    "pool_size": 64,
    "pool_device": "device",
    "grid_steps": 4,
    "trackers": [],
    "device": "cpu",
    "max_drift": 100.0,
}
LORA: dict[str, Any] = {**COMMON, "train": "lora", "targets": "all", "rank": 16}
FULL: dict[str, Any] = {**COMMON, "train": "full", "learning_rate": 1e-6}
CHECKPOINTS: dict[str, Any] = {"gradient_checkpointing": True}
SHARED_LEVERS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "pool_device=cpu": {"pool_device": "cpu"},
    "gradient_checkpointing": CHECKPOINTS,
    "batch_size=1, grad_accumulation=4": {"batch_size": 1, "grad_accumulation": 4},
    "optimizer=adamw_fused": {"optimizer": "adamw_fused"},
    "optimizer=adamw8bit": {"optimizer": "adamw8bit"},
}
LORA_LEVERS = {
    **SHARED_LEVERS,
    "base_storage=fp8, gradient_checkpointing": {**CHECKPOINTS, "base_storage": "fp8"},
    "base_storage=int8, gradient_checkpointing": {**CHECKPOINTS, "base_storage": "int8"},
}
FULL_LEVERS = SHARED_LEVERS
WINDOW: dict[str, dict[str, Any]] = {"chunk_frames=3": {"chunk_frames": 3}}


def _levers(
    load: Callable[[], Any], settings: dict[str, Any], levers: dict[str, dict[str, Any]], updates: int, what: str
) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, changes in tqdm(levers.items(), desc=what, unit="row"):
        recipe, backbone = build_recipe({**settings, **changes}), load()
        asked = dry_run(backbone, recipe, ["a red circle"])
        seen = measure(backbone, recipe, ["a red circle"], updates)
        first = rows.get("as it is", {"seen": seen.bytes, "seconds": seen.seconds})
        rows[name] = {
            "estimated": asked.device_bytes,
            "seen": seen.bytes,
            "of the first row": round(seen.bytes / first["seen"], 3),
            "time, of the first row's": round(seen.seconds / first["seconds"], 2),
            "seconds": round(seen.seconds, 3),
        }
    return rows


def _random_sd15(blocks: list[int]) -> StableDiffusionPipeline:
    """Without text encoder: it is asked with embeddings. A small VAE that is never used, but for its factor of 8."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=blocks, cross_attention_dim=768, attention_head_dim=8, norm_num_groups=32
    )
    small = AutoencoderKL(
        block_out_channels=[8] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    pipe = StableDiffusionPipeline(
        vae=small,
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval().requires_grad_(False),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _random_lora(pipe: StableDiffusionPipeline, folder: Path, rank: int) -> Path:
    pipe.unet.add_adapter(LoraConfig(r=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), "npo")
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=1e-3)
    save_lora(SD15.kind, pipe.unet, folder, "npo")
    pipe.unet.unload_lora()
    return folder / "pytorch_lora_weights.safetensors"


def _random_offset(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """bf16, as runs store theirs, a hundredth of the weights."""
    matrices = ((name, parameter) for name, parameter in pipe.unet.named_parameters() if parameter.dim() > 1)
    return {name: (0.01 * p.std() * torch.randn_like(p)).to(torch.bfloat16) for name, p in matrices}


@torch.no_grad()
def _seconds(pipe: StableDiffusionPipeline, side: int, steps: int) -> float:
    texts = torch.randn(2, 1, 77, 768, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    pipe(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        height=side,
        width=side,
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(2),
    )
    return time.perf_counter() - start


def _tensor_bytes() -> int:
    """Of all tensors that are alive, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def _write(output: Path, figures: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(figures, indent=1))


def _command() -> str:
    """As it was called; where a run lies is of no interest."""
    return shlex.join(["python", "tools/benchmark.py", *("RUN" if Path(w).is_dir() else w for w in sys.argv[1:])])


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
