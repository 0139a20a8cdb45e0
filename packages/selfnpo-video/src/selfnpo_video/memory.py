"""Will a clip fit? Estimated from configurations and file sizes, before any weight is read.

Two moments matter: a forward of the transformer, and the decoding of one chunk of frames. Both were measured by
`selfnpo_core.profiling.peak_tensor_bytes` on small models of the same classes (on a CPU; tests hold the factors to
within a third) and grow with the sizes below. Attention takes no memory of its own: no kernel here holds the scores.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open

from selfnpo_core.errors import InputError
from selfnpo_video.shapes import ClipSize, Compression

FORWARD = 12.6
"""Peak of a transformer's forward: this many tensors of (rows, tokens, width)."""
DECODE = {"cpu": 75.0, "cuda": 24.0}
"""Peak of decoding a chunk: this many tensors of (frames, height, width, channels of the VAE's last block).

CPU kernels unfold a convolution's 27 inputs, which is two thirds of it; the figure for GPUs is what is left, and has
not been measured.
"""
_PARTS = ("transformer", "vae", "text_encoder")


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that sampling takes on the device. weights: what is there at once."""

    weights: int
    denoising: int
    decoding: int

    @property
    def peak(self) -> int:
        return self.weights + max(self.denoising, self.decoding)


def need(
    folder: Path,
    transformer: Any,
    vae: Any,
    size: ClipSize,
    *,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int | None = None,
) -> Need:
    """Estimate for a clip of `size`; rows: of a forward, guidance's two included; window: frames seen at a time.

    transformer, vae: their configurations. On a GPU one component is there at a time, on the CPU all are.
    """
    compression = Compression.of(transformer, vae)
    frames, _, height, width = compression.latent_shape(size)
    if window is not None:
        frames = min(frames, compression.latent_window(window))
    patches = frames // compression.patch_time * (height // compression.patch) * (width // compression.patch)
    tokens = patches + transformer.max_text_seq_length
    channels = transformer.num_attention_heads * transformer.attention_head_dim
    chunk = 9 if size.frames > 1 else 1  # the first three latent frames, at most
    pixels = chunk * size.height * size.width * vae.block_out_channels[0]
    factor = DECODE.get(device.type, DECODE["cuda"])
    parts = [_weights(folder / part, dtype) for part in _PARTS]
    return Need(
        weights=sum(parts) if device.type == "cpu" else max(parts),
        denoising=int(FORWARD * rows * tokens * channels * dtype.itemsize),
        decoding=int(factor * pixels * dtype.itemsize),
    )


def available(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check(
    folder: Path,
    transformer: Any,
    vae: Any,
    size: ClipSize,
    *,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    tiling: bool = False,
    window: int | None = None,
) -> None:
    """Raise `InputError` for a clip that will not fit, and say what would. A tile is taken to fit."""

    def estimate(some: ClipSize, rows: int) -> Need:
        return need(folder, transformer, vae, some, rows=rows, dtype=dtype, device=device, window=window)

    def fits(some: ClipSize, rows: int, tiled: bool) -> bool:
        asked = estimate(some, rows)
        decoding = 0 if tiled else asked.decoding
        return asked.weights + max(asked.denoising, decoding) <= free

    free = available(device)
    if fits(size, rows, tiling):
        return
    asked = estimate(size, rows)
    hints = []
    if rows > 2 and fits(size, 2, tiling):
        hints.append("--batch-size 1")
    if not tiling and fits(size, rows, True):
        hints.append("--tiling")
    shorter = _largest(size, lambda some: fits(some, 2, tiling))
    if shorter is not None and not hints:
        hints.append(f"--frames {shorter.frames} --height {shorter.height} --width {shorter.width}")
    what = " or ".join(hints) or "another device, or a 16-bit dtype"
    raise InputError(
        f"a clip of {size} takes about {asked.peak / 2**30:.1f} GiB ({asked.weights / 2**30:.1f} of weights, "
        f"{asked.denoising / 2**30:.1f} to denoise, {asked.decoding / 2**30:.1f} to decode), "
        f"and {device} has {free / 2**30:.1f} GiB free: use {what}"
    )


def _largest(size: ClipSize, fits: Any) -> ClipSize | None:
    """The longest clip of this height and width that fits, else the largest of a single frame."""
    for frames in range(size.frames - 8, 0, -8):
        if fits(replace(size, frames=frames)):
            return replace(size, frames=frames)
    for divisor in (2, 4, 8):
        smaller = ClipSize(
            frames=1, height=size.height // divisor // 16 * 16 or 16, width=size.width // divisor // 16 * 16 or 16
        )
        if fits(smaller):
            return smaller
    return None


def _weights(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of a component's safetensors once cast to `dtype`; only the headers are read."""
    if not folder.is_dir():
        return 0
    numbers = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dict)
                shape = stored.get_slice(name).get_shape()
                numbers += int(torch.Size(shape).numel())
    return numbers * dtype.itemsize
