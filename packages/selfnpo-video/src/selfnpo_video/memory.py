"""Will a clip fit? Estimated from configurations and file sizes, before any weight is read.

Two moments matter: a forward of the transformer, and the decoding of one chunk of frames. What either takes is the
family's to say: it was measured by `selfnpo_core.system.memory.peak_tensor_bytes` on small models of the same classes
(on a CPU; tests hold the factors to within a third). Attention takes no memory of its own: no kernel here holds the
scores.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from selfnpo_core.errors import InputError
from selfnpo_core.models.components import header_of
from selfnpo_core.system.memory import available
from selfnpo_video.kinds import VideoBase
from selfnpo_video.shapes import ClipSize, Compression

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that sampling takes on the device: of weights by component, and what comes on top of them."""

    transformer: int
    vae: int
    text_encoder: int
    denoising: int
    decoding: int
    one_at_a_time: bool
    """Only the component at work is on the device (GPU); else all are (CPU)."""

    @property
    def weights(self) -> int:
        parts = self.transformer, self.vae, self.text_encoder
        return max(parts) if self.one_at_a_time else sum(parts)

    @property
    def peak(self) -> int:
        if not self.one_at_a_time:
            return self.weights + max(self.denoising, self.decoding)
        return max(self.transformer + self.denoising, self.vae + self.decoding, self.text_encoder)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A model on this disk and how it is asked.

    rows: of a forward, guidance's two included; window: frames seen at a time; full_negative: negative weights that are
    an offset of all weights, which is on the device beside them; tiling: decoding by diffusers' tiles.
    """

    base: VideoBase
    rows: int
    dtype: torch.dtype
    device: torch.device
    window: int | None = None
    full_negative: bool = False
    tiling: bool = False

    def need(self, size: ClipSize) -> Need:
        """Estimate for a clip of `size`."""
        compression = self.base.compression
        frames, _, height, width = compression.latent_shape(size)
        if self.window is not None:
            frames = min(frames, compression.latent_window(self.window))
        patches = frames // compression.patch_time * (height // compression.patch) * (width // compression.patch)
        transformer, text_encoder = (_weights(self.base, part, self.dtype) for part in ("transformer", "text_encoder"))
        vae = _weights(self.base, "vae", self.base.kind.vae_dtype or self.dtype)
        return Need(
            transformer=transformer * (2 if self.full_negative else 1),
            vae=vae,
            text_encoder=text_encoder,
            denoising=self.base.kind.denoising_bytes(
                self.base, rows=self.rows, patches=patches, itemsize=self.dtype.itemsize
            ),
            decoding=self._decoding(size),
            one_at_a_time=self.device.type != "cpu",
        )

    def _decoding(self, size: ClipSize) -> int:
        return decoding_bytes(self.base, size, self.dtype, self.device.type, tiling=self.tiling)

    def wants_tiles(self, size: ClipSize) -> bool:
        """Whether a clip fits when it is decoded by tiles, and only then."""
        free = available(self.device)
        return not self.tiling and self.need(size).peak > free >= replace(self, tiling=True).need(size).peak

    def check(self, size: ClipSize) -> None:
        """Raise `InputError` for a clip that will not fit, and say what would.

        On a GPU, where what comes on top of the weights is a guess, warn where that alone is too much.
        """
        free, asked = available(self.device), self.need(size)
        if asked.peak <= free:
            return
        message = (
            f"a clip of {size} takes about {asked.peak / 2**30:.1f} GiB ({asked.weights / 2**30:.1f} of weights, "
            f"{asked.denoising / 2**30:.1f} to denoise, {asked.decoding / 2**30:.1f} to decode), "
            f"and {self.device} has {free / 2**30:.1f} GiB free: use {self._instead(size, free)}"
        )
        if self.device.type != "cpu" and asked.weights <= free:
            log.warning("%s", message)
            return
        raise InputError(message)

    def _instead(self, size: ClipSize, free: int) -> str:
        """The least that has to be given up."""
        single = min(self.rows, 2 if self.base.kind.branches_together else 1)
        less = "--batch-size 1" if single < self.rows else ""
        tiles = "" if self.tiling else "--tiling"
        for rows, tiling, words in (
            (single, self.tiling, [less]),
            (self.rows, True, [tiles]),
            (single, True, [less, tiles]),
        ):
            if replace(self, rows=rows, tiling=tiling).need(size).peak <= free:
                return " ".join(filter(None, words))
        fixed = self.base.compression.fixed is not None
        for smaller in () if fixed else _smaller(size, self.base.compression):
            for tiling, words in ((self.tiling, [less]), (True, [less, tiles])):
                if replace(self, rows=single, tiling=tiling).need(smaller).peak <= free:
                    asked = f"--frames {smaller.frames} --height {smaller.height} --width {smaller.width}"
                    return " ".join(filter(None, [asked, *words]))
        return "another device, or a 16-bit dtype"


def decoding_bytes(base: VideoBase, size: ClipSize, dtype: torch.dtype, kind: str, *, tiling: bool) -> int:
    """What decoding one clip holds beside the VAE's weights, at its peak. kind: of device, "cpu", "cuda"."""
    return base.kind.decoding_bytes(base.vae, size, base.kind.vae_dtype or dtype, kind, tiling=tiling)


def _smaller(size: ClipSize, compression: Compression) -> Iterator[ClipSize]:
    """Shorter clips of this height and width, then smaller single frames."""
    for frames in range(size.frames - compression.frame_step, 0, -compression.frame_step):
        yield replace(size, frames=frames)
    step = compression.space * compression.patch
    for divisor in (2, 4, 8):
        height, width = (max(step, side // divisor // step * step) for side in (size.height, size.width))
        yield ClipSize(frames=1, height=height, width=width)


def _weights(base: VideoBase, part: str, dtype: torch.dtype) -> int:
    """Bytes of a component's weights once cast to `dtype`; only the headers are read."""
    shapes = header_of(base.folder / part, base.weights[part]).shapes
    return sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
