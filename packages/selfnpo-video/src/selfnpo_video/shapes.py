"""From frames and pixels to latents, and which sizes a checkpoint can take."""

from dataclasses import dataclass

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
    """Height and width in pixels beyond which there are no positions (CogVideoX-1.5)."""
    chunk: int = 2
    """Latent frames that the VAE decodes at a time: the first has one to itself, and others come in such chunks."""

    def latent_shape(self, size: ClipSize) -> tuple[int, int, int, int]:
        """(frames, channels, height, width) of the latents. Raises `InputError` for sizes that are not possible.

        With temporal patches (CogVideoX-1.5) frames are padded in front to a multiple of the patch, as the pipeline
        does; the padding's frames are dropped after sampling.
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

    @property
    def frame_step(self) -> int:
        """A clip has a multiple of so many frames, and one."""
        return self.chunk * self.time

    def check(self, size: ClipSize) -> None:
        """Raise `InputError`, with the nearest size that works, for one that the model cannot draw."""
        if self.nearest(size) != size:
            if self.fixed:
                raise InputError(f"this model draws clips of {self.fixed} (frames × height × width) only, not {size}")
            most = "" if self.largest is None else f" of at most {self.largest[0]} and {self.largest[1]}"
            raise InputError(
                f"a clip of {size} (frames × height × width) is not possible: frames must be a multiple of "
                f"{self.frame_step} plus 1, height and width multiples of {self.space * self.patch}{most}; "
                f"the nearest is {self.nearest(size)}"
            )

    def nearest(self, size: ClipSize) -> ClipSize:
        """The size itself if it is possible.

        The VAE gives the first latent frame one picture, every other one `time`. One that decodes two at a time would
        have no first frame to itself in an even number of them, and the clip came back longer than it was asked for.
        """
        if self.fixed:
            return self.fixed
        frames = 1 + self.frame_step * max(0, round((size.frames - 1) / self.frame_step))
        step = self.space * self.patch
        most = self.largest or (size.height + step, size.width + step)
        sides = zip((size.height, size.width), most, strict=True)
        height, width = (max(step, step * min(round(n / step), limit // step)) for n, limit in sides)
        return ClipSize(frames=frames, height=height, width=width)
