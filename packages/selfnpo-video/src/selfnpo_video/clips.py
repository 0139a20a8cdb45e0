"""From prompts and seeds to frames: a stock pipeline as it is, and its latents decoded as they come."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfnpo_core.sampling import job
from selfnpo_core.system import private
from selfnpo_core.system.pictures import read_picture
from selfnpo_video.first_frame import fitted
from selfnpo_video.kinds import VideoKind
from selfnpo_video.shapes import ClipSize
from selfnpo_video.streaming import decode_stream
from selfnpo_video.video_files import to_frames

log = logging.getLogger(__name__)
KIND = "_selfnpo_kind"
"""Attribute of a pipeline that clips are drawn with: of which family it is (`set_kind`)."""


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
    fit: str = "crop"
    """How a first frame is brought to the clip's size: of `first_frame.FITS`."""


def set_kind(pipe: Any, kind: VideoKind) -> None:
    """Have the pipeline say of which family it is."""
    setattr(pipe, KIND, kind)


def draw(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    *,
    embeddings: Tensor | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Index and frames (F, H, W, 3) uint8, in order. embeddings: as of `latent_batches`."""
    for index, latents in latent_clips(pipe, prompts, seeds, settings, embeddings=embeddings):
        yield index, np.stack(list(frames_of(pipe, latents, name=f"the clip of seed {seeds[index]}")))


def latent_clips(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, **options: Any
) -> Iterator[tuple[int, Tensor]]:
    """Index and latents (1, F, C, h, w), in order. options: of `latent_batches`."""
    for batch in latent_batches(pipe, prompts, seeds, settings, **options):
        yield from batch


@torch.no_grad()
def latent_batches(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    *,
    images: Sequence[Path] | None = None,
    embeddings: Tensor | None = None,
    padded: bool = False,
) -> Iterator[list[tuple[int, Tensor]]]:
    """Batches of index and latents (1, F, C, h, w), in order. The pipeline is called as it is, once a batch.

    Every clip has its own generator. Where a scheduler draws noise from one for the whole batch (CogVideoX's DPM), the
    batch is one clip. images: a first frame a prompt, for image-to-video pipelines. embeddings: (N + 1, L, D) of the
    prompts and the null prompt, for a pipeline without text encoder. padded: with the frames in front that the network
    sees and the VAE does not.
    """
    pipe.set_progress_bar_config(desc="denoise", leave=False)
    kind: VideoKind = getattr(pipe, KIND)
    size, config = settings.size, pipe.transformer.config
    batch = 1 if kind.one_at_a_time(pipe.scheduler) else settings.batch_size
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
            **(
                {} if images is None else {"image": [fitted(read_picture(i), size, settings.fit) for i in images[part]]}
            ),
            num_frames=size.frames,
            height=size.height,
            width=size.width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            max_sequence_length=kind.text(config)[0],
            generator=generators if len(generators) > 1 else generators[0],
            output_type="latent",
            **kind.call(config, dynamic_guidance=settings.dynamic_guidance),
        ).frames
        latents = kind.time.ours(latents)
        padding = latents.shape[1] - ((size.frames - 1) // pipe.vae_scale_factor_temporal + 1)
        yield list(enumerate(latents[:, 0 if padded else padding :].split(1), start))


@torch.no_grad()
def frames_of(
    pipe: Any, latents: Tensor, device: torch.device | None = None, *, name: str = "a clip"
) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of one clip's latents (1, F, C, h, w), decoded chunk by chunk.

    device: where; the pipeline's own if not given. name: what the clip is called where it went wrong.
    """
    vae = pipe.vae
    device = device or private.execution_device(pipe) or latents.device
    if vae.device != device:
        vae.to(device)
    yield from watched((chunk[0] for chunk in decode_stream(vae, latents.to(device, vae.dtype))), name)


def watched(chunks: Iterable[Tensor], name: str) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of chunks (3, f, H, W) in [−1, 1]. Says if any were not finite, or all black."""
    count = spoilt = black = 0
    for chunk in chunks:
        spoilt += int((~chunk.isfinite()).any(dim=3).any(dim=2).any(dim=0).sum())
        for frame in to_frames(chunk):
            count, black = count + 1, black + (not frame.any())
            yield frame
    if spoilt:
        log.warning("%s has %d of %d frames with NaN, shown black, or infinity: try another dtype", name, spoilt, count)
    elif black == count:
        log.warning("%s is all black: try another dtype", name)
