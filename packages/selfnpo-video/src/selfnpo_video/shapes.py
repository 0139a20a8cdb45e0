"""From frames and pixels to latents, and which sizes a checkpoint can take."""

from dataclasses import dataclass
from typing import Any

from selfnpo_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """A clip in frames and pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}×{self.height}×{self.width}"


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How a checkpoint packs a clip: latents have 1 + (frames − 1)/time frames of (height, width)/space."""

    time: int
    space: int
    patch: int
    patch_time: int
    channels: int
    """Of the latents that are denoised."""
    fixed: ClipSize | None = None
    """The only size, where positions were learned for it alone."""
    largest: tuple[int, int] | None = None
    """Height and width in pixels beyond which there are no positions (1.5)."""

    @classmethod
    def of(cls, transformer: Any, vae: Any) -> "Compression":
        """From the configurations of a CogVideoXTransformer3DModel and an AutoencoderKLCogVideoX."""
        space = 2 ** (len(vae.block_out_channels) - 1)
        fixed = None
        if transformer.use_learned_positional_embeddings:
            fixed = ClipSize(
                frames=transformer.sample_frames,
                height=transformer.sample_height * space,
                width=transformer.sample_width * space,
            )
        return cls(
            time=int(vae.temporal_compression_ratio),
            space=space,
            patch=transformer.patch_size,
            patch_time=transformer.patch_size_t or 1,
            channels=transformer.out_channels,
            fixed=fixed,
            largest=None
            if transformer.patch_size_t is None
            else (transformer.sample_height * space, transformer.sample_width * space),
        )

    def latent_shape(self, size: ClipSize) -> tuple[int, int, int, int]:
        """(frames, channels, height, width) of the latents. Raises `InputError` for sizes that are not possible.

        With temporal patches (1.5) frames are padded in front to a multiple of the patch, as the pipeline does; the
        padding's frames are dropped after sampling.
        """
        self.check(size)
        frames = (size.frames - 1) // self.time + 1
        frames += -frames % self.patch_time
        return frames, self.channels, size.height // self.space, size.width // self.space

    def latent_window(self, frames: int) -> int:
        """Latent frames of a window of `frames`, padded to whole patches. Raises `InputError` if it is too short."""
        latent = (frames - 1) // self.time + 1
        latent += -latent % self.patch_time
        if (frames - 1) % self.time or latent < 2 * self.patch_time:
            fewest = 1 + self.time * (2 * self.patch_time - 1)
            raise InputError(
                f"a window of {frames} frames is not possible: use a multiple of {self.time} plus 1, {fewest} or more"
            )
        return latent

    def check(self, size: ClipSize) -> None:
        """Raise `InputError`, with the nearest size that works, for one that the model cannot draw."""
        if self.nearest(size) != size:
            if self.fixed:
                raise InputError(f"this model draws clips of {self.fixed} (frames × height × width) only, not {size}")
            most = "" if self.largest is None else f" of at most {self.largest[0]} and {self.largest[1]}"
            raise InputError(
                f"a clip of {size} (frames × height × width) is not possible: frames must be a multiple of "
                f"{2 * self.time} plus 1, height and width multiples of {self.space * self.patch}{most}; "
                f"the nearest is {self.nearest(size)}"
            )

    def nearest(self, size: ClipSize) -> ClipSize:
        """The size itself if it is possible.

        The VAE decodes two latent frames at a time and gives the first frame one picture, every other one `time`: an
        even number of latent frames would have no first frame to itself, and come back longer than it was asked for.
        """
        if self.fixed:
            return self.fixed
        frames = 1 + 2 * self.time * max(0, round((size.frames - 1) / (2 * self.time)))
        step = self.space * self.patch
        most = self.largest or (size.height + step, size.width + step)
        sides = zip((size.height, size.width), most, strict=True)
        height, width = (max(step, step * min(round(n / step), limit // step)) for n, limit in sides)
        return ClipSize(frames=frames, height=height, width=width)
