"""What each way to hold negative weights costs, on a UNet of SD1.5's architecture with random weights."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from benchmarks.common import command, machine, tensor_bytes, threads_option, use_threads, write
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from tqdm import tqdm

from selfnpo_core.adapters import NegativeDelta, NegativeLayers, attach_npo
from selfnpo_image.backbone import save_lora
from selfnpo_image.sd15 import SD15


@click.command("modes")
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
@threads_option
def modes(output: Path, side: int, steps: int, repeats: int, rank: int, blocks: str, threads: int) -> None:
    """Seconds and bytes of every --negative-mode on a UNet of SD1.5's architecture with random weights."""
    use_threads(threads)
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
            before = tensor_bytes()
            with attach():
                held = tensor_bytes() - before
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
        "command": command(),
        "machine": f"{machine()}, float32",
        "model": f"UNet of SD1.5's architecture, {sum(p.numel() for p in pipe.unet.parameters()):,} random weights",
        "pictures": f"one of {side}×{side}, {steps} steps, two rows a step",
        "plain guidance, seconds a step": round(median(plains) / steps, 3),
        "modes": rows,
    }
    write(output, figures)


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
