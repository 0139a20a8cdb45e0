"""From prompts and seeds to frames: a stock pipeline as it is, and its latents decoded as they come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXDPMScheduler
from PIL import Image, ImageOps
from torch import Tensor

from selfnpo_core.sampling import job
from selfnpo_core.system import private
from selfnpo_video.shapes import ClipSize
from selfnpo_video.streaming import decode_stream
from selfnpo_video.video_files import to_frames


@dataclass(frozen=True, kw_only=True)
class Settings(job.Settings):
    """How clips are drawn."""

    size: ClipSize
    dynamic_guidance: bool = False
    """The pipelines' `use_dynamic_cfg`: a scale that depends on the timestep, and swings widely at few steps."""
    window: int | None = None
    """Frames that the model sees at a time, for clips longer than it was trained for (`selfnpo_video.long`)."""
    window_place: int = 0
    """Latent frame of a clip at which the model takes windows but the first to begin."""


def draw(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    *,
    embeddings: Tensor | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Index and frames (F, H, W, 3) uint8, in order. embeddings: as of `latent_clips`."""
    for index, latents in latent_clips(pipe, prompts, seeds, settings, embeddings=embeddings):
        yield index, np.stack(list(frames_of(pipe, latents)))


@torch.no_grad()
def latent_clips(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    *,
    image: Path | None = None,
    embeddings: Tensor | None = None,
    padded: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Index and latents (1, F, C, h, w), in order. The pipeline is called as it is, a batch at a time.

    Every clip has its own generator. The DPM scheduler draws noise from one for the whole batch, so there the batch is
    one clip. embeddings: (N + 1, L, D) of the prompts and the null prompt, for a pipeline without T5. padded: with the
    frames in front that the network sees and the VAE does not.
    """
    pipe.set_progress_bar_config(desc="denoise", leave=False)
    size, config = settings.size, pipe.transformer.config
    batch = 1 if isinstance(pipe.scheduler, CogVideoXDPMScheduler) else settings.batch_size
    picture = None if image is None else ImageOps.exif_transpose(Image.open(image)).convert("RGB")
    for start in range(0, len(prompts), batch):
        part = slice(start, min(start + batch, len(prompts)))
        count = part.stop - part.start
        texts: dict[str, Any]
        if embeddings is None:
            negative = settings.negative_prompt
            texts = {
                "prompt": list(prompts[part]),
                "negative_prompt": None if negative is None else [negative] * count,
            }
        else:
            device = pipe.transformer.device
            null = embeddings[-1:].expand(count, -1, -1)
            texts = {"prompt_embeds": embeddings[part].to(device), "negative_prompt_embeds": null.to(device)}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        latents = pipe(
            **texts,
            **({} if picture is None else {"image": [picture] * count}),
            num_frames=size.frames,
            height=size.height,
            width=size.width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            use_dynamic_cfg=settings.dynamic_guidance,
            max_sequence_length=config.max_text_seq_length,
            generator=generators if len(generators) > 1 else generators[0],
            output_type="latent",
        ).frames
        padding = latents.shape[1] - ((size.frames - 1) // pipe.vae_scale_factor_temporal + 1)
        for offset, clip in enumerate(latents[:, 0 if padded else padding :].split(1)):
            yield start + offset, clip


@torch.no_grad()
def frames_of(pipe: Any, latents: Tensor, device: torch.device | None = None) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of one clip's latents (1, F, C, h, w), decoded chunk by chunk.

    device: where; the pipeline's own if not given.
    """
    vae = pipe.vae
    device = device or private.execution_device(pipe) or latents.device
    if vae.device != device:
        vae.to(device)
    for chunk in decode_stream(vae, latents.to(device, vae.dtype)):
        yield from to_frames(chunk[0])
