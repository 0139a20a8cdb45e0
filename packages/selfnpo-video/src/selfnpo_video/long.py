"""Clips longer than a model was trained for: overlapping windows, blended at every denoising step.

Every window is a clip of the trained length to the model, at positions that it knows: all at a clip's beginning, or all
but the first further inside, for a model that was trained on such windows too (a clip's first latent frame is one
picture, any other stands for several, and by the positions a model tells which it has). At each step the windows'
outputs are blended by weights that rise and fall linearly, and that sum to one for every frame. The output is linear in
both estimates, so this blends x̂0 and ε̂ as well, and all windows stay on one trajectory. From step to step the windows
move to and fro by half their distance, so that what one step's windows part, the next one's hold together, and no frame
lies at a seam throughout. Costs one forward a window and step, and one more at every other step; memory is that of one
window. The windows know nothing of each other but what they share: a motion that each of them begins and ends by itself
does not go on through a seam.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.adapters.hooks import bare, forward_of, replace_forward
from selfnpo_core.adapters.negative_delta import is_compiled
from selfnpo_core.errors import InputError
from selfnpo_video.positions import COGVIDEOX_TIME, TimeAxis


def window_starts(frames: int, window: int, overlap: int, step: int = 1) -> list[int]:
    """Where windows of `window` frames begin so that they cover `frames`, neighbours sharing `overlap` or more.

    All are multiples of `step` (temporal patches), spread as evenly as can be.
    """
    if not 0 < overlap <= window - step or window % step or frames % step:
        raise InputError(
            f"windows of {window} latent frames cannot overlap by {overlap} in steps of {step}: use longer windows"
        )
    if frames <= window:
        return [0]
    count = -(-(frames - overlap) // (window - overlap))
    count = max(count, 2)
    while True:
        starts = [round(k * (frames - window) / (count - 1) / step) * step for k in range(count)]
        if all(b - a <= window - overlap for a, b in pairwise(starts)):
            return starts
        count += 1


def between(starts: list[int], step: int = 1) -> list[int]:
    """Where the windows of every other step begin: half-way between those of `window_starts`, and at both ends."""
    middles = ((a + b) // 2 // step * step for a, b in pairwise(starts))
    return sorted({starts[0], *middles, starts[-1]})


def default_overlap(window: int, step: int = 1) -> int:
    """Half a window, or what is left of a short one."""
    return min(window // 2, window - step)


def blend_weights(frames: int, window: int, starts: list[int]) -> Tensor:
    """(windows, frames): linear in the overlaps, zero outside of a window, every frame's column summing to one."""
    weights = torch.zeros(len(starts), frames, dtype=torch.float64)
    for row, start in zip(weights, starts, strict=True):
        count = min(window, frames)
        rise = torch.arange(1, count + 1, dtype=torch.float64)
        row[start : start + count] = torch.minimum(rise, rise.flip(0))
    return weights / weights.sum(dim=0)


@contextmanager
def windowed(
    transformer: Any, window: int, overlap: int | None = None, *, place: int = 0, time: TimeAxis = COGVIDEOX_TIME
) -> Iterator[None]:
    """Within the block, the transformer takes clips of any length, `window` latent frames at a time.

    overlap: of neighbouring windows; half a window, rounded down, if not given. place: latent frame of a clip at which
    the model takes windows to begin, but for the first, which begins at 0. time: of the transformer's family. Negative
    weights are to be attached inside the block.

    Raises `InputError` for windows that cannot be, and for a place in a compiled transformer, which would not see it.
    """
    step = time.step(transformer.config)
    overlap = default_overlap(window, step) if overlap is None else overlap
    window_starts(window + step, window, overlap, step)  # refuses what cannot be, before anything is drawn
    if place % step or place < 0:
        raise InputError(f"windows cannot be put at latent frame {place}: use a multiple of {step}")
    if place and is_compiled(transformer):
        raise InputError("a compiled transformer knows its windows at a clip's beginning only: use --window-place 0")
    inner = forward_of(transformer)
    named = inspect.signature(type(bare(transformer)).forward)
    steps = _Steps()

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = named.bind(transformer, *args, **kwargs).arguments
        given.pop("self")
        hidden_states = given["hidden_states"]
        frames = hidden_states.shape[time.dim]
        if frames <= window:
            return inner(*args, **kwargs)
        del given["hidden_states"]
        starts = window_starts(frames, window, overlap, step)
        if steps.at(given["timestep"]) % 2:
            starts = between(starts, step)
        weights = blend_weights(frames, window, starts).to(hidden_states.device, torch.float32)
        as_tuple = given.pop("return_dict", True) is False
        blended: Tensor | None = None
        for row, start in zip(weights, starts, strict=True):
            part = slice(start, start + window)
            with time.window(transformer, given, frames, part, min(place, start)) as own:
                seen = hidden_states.narrow(time.dim, start, window)
                output = time.ours(inner(hidden_states=seen, **own, return_dict=False)[0])
            if blended is None:
                shape = (output.shape[0], frames, *output.shape[2:])
                blended = torch.zeros(shape, device=output.device, dtype=torch.float32)
            blended[:, part] += row[part].reshape(1, -1, 1, 1, 1) * output.float()
        assert blended is not None
        result = time.ours(blended).to(hidden_states.dtype)
        if as_tuple:
            return (result,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=result)

    with ExitStack() as undo:
        replace_forward(undo, transformer, forward)
        yield


class _Steps:
    """Counts the denoising steps of a clip by their timesteps, which fall until the next clip's begin again."""

    def __init__(self) -> None:
        self.timestep, self.index = float("-inf"), 0

    def at(self, timestep: Any) -> int:
        now = float(torch.as_tensor(timestep).flatten()[0])
        if now > self.timestep:
            self.index = 0
        elif now < self.timestep:
            self.index += 1
        self.timestep = now
        return self.index
