"""One update's loss: the student at the re-noised x_s against what the teacher saw at x_t.

    x_s ~ q(x_s | x_t), s uniform in (t, T]          (Self-NPO, 2505.11777)
    tdft                ρ(x̂_student(x_s) − x̂_weak(x_t))
    gradient_reversal   … and away from x̂_strong(x_t) through a gradient reversal layer
    dpo                 weak wins against strong, relative to the base at x_s
    denoising (a loss)  the student's output at x_s, made of a finished sample and noise, against these two

The networks may run in half precision; everything here is float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from selfnpo_core.denoise import renoise
from selfnpo_core.errors import InputError
from selfnpo_core.guidance import NULL
from selfnpo_core.models.backbone import Backbone, WindowedBackbone
from selfnpo_core.objective import denoising_loss, gradient_reversal_loss, npo_dpo_loss, tdft_loss
from selfnpo_core.prediction import Estimate, to_estimate
from selfnpo_core.ranks import ALONE, Ranks, row_noise
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.rollouts import Look, RolloutSource
from selfnpo_core.training.student import Role, Student


@dataclass(frozen=True, kw_only=True)
class Noised:
    """The student's question: x_s: (B, *S) at s: (B,) under prompt: (B,), made from a look and noise: (B, *S).

    first: where x_s, and all of the look, is a window of a clip, the frame that the window begins at.
    """

    look: Look
    x_s: Tensor
    s: Tensor
    prompt: Tensor
    noise: Tensor
    first: int | None = None

    def window(self, first: int, count: int) -> "Noised":
        """Frames first … first + count − 1 (dimension 1) of everything."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[:, first : first + count]

        def cut_estimate(estimate: Estimate) -> Estimate:
            return Estimate(cut(estimate.x0), cut(estimate.eps))

        look = self.look
        strong = None if look.strong is None else cut_estimate(look.strong)
        look = replace(look, x_t=cut(look.x_t), weak=cut_estimate(look.weak), strong=strong, advance=None)
        return replace(self, look=look, x_s=cut(self.x_s), noise=cut(self.noise), first=first)


@dataclass
class RowCounter:
    """Rows of forwards, by whose weights they used."""

    student: int = 0
    teacher: int = 0
    base: int = 0

    def add(self, role: Role, rows: int) -> None:
        setattr(self, role, getattr(self, role) + rows)

    def reset(self) -> None:
        self.student = self.teacher = self.base = 0


@dataclass(frozen=True, kw_only=True)
class Denoisers:
    """The network under each set of weights, as denoisers of the core: float32 estimates in, float32 out."""

    backbone: Backbone
    weights: Student
    counter: RowCounter
    amp: torch.dtype | None = None
    """dtype of autocast around the network; `None` for none."""

    def student(self, x_t: Tensor, t: Tensor, prompt: Tensor, first: int | None = None) -> Estimate:
        return self._estimate("student", x_t, t, prompt, first)

    @torch.no_grad()
    def teacher(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
        with self.weights.role("teacher"):
            return self._estimate("teacher", x_t, t, prompt)

    @torch.no_grad()
    def base(self, x_t: Tensor, t: Tensor, prompt: Tensor, first: int | None = None) -> Estimate:
        with self.weights.role("base"):
            return self._estimate("base", x_t, t, prompt, first)

    def _estimate(self, role: Role, x_t: Tensor, t: Tensor, prompt: Tensor, first: int | None = None) -> Estimate:
        self.counter.add(role, len(x_t))
        with torch.autocast(x_t.device.type, dtype=self.amp, enabled=self.amp is not None):
            if first is None:
                output = self.backbone.predict(x_t, t, prompt)
            else:
                assert isinstance(self.backbone, WindowedBackbone)
                output = self.backbone.predict_window(x_t, t, prompt, first=first)
        level = self.backbone.schedule.at(t, like=x_t)
        return to_estimate(output.float(), x_t, level, self.backbone.prediction_type)


def noised_looks(
    source: RolloutSource, backbone: Backbone, recipe: Recipe, generator: torch.Generator, ranks: Ranks = ALONE
) -> Iterator[Noised]:
    """This process's parts of one update, re-noised. All that is random is drawn first, for all processes' rows (of
    noise, its seeds).

    What was drawn is the caller's to put back, when all parts have been used.
    """
    drawn, rows = source.draw(), recipe.update_rows * ranks.count
    own = ranks.part(rows)
    s = backbone.schedule.draw_noisier(drawn.drawn_t, generator)[own]
    noise = row_noise(rows, own, tuple(backbone.latent_shape), generator)
    dropped = (torch.rand(rows, generator=generator) < recipe.student_prompt_dropout)[own]
    windows = draw_windows(backbone, recipe, generator, ranks)
    start = 0
    for index, look in enumerate(source.looks(drawn, recipe.batch_size)):
        part = slice(start, start := start + len(look.t))
        noised = _noise(look, s[part].to(look.t.device), noise[part], dropped[part], backbone)
        yield noised if windows is None else noised.window(windows[index], cast(int, recipe.chunk_frames))


def draw_windows(
    backbone: Backbone, recipe: Recipe, generator: torch.Generator, ranks: Ranks = ALONE
) -> list[int] | None:
    """Where the window of each of this process's parts begins, uniform over all places; `None` for whole clips."""
    if recipe.chunk_frames is None:
        return None
    step, parts = _window_step(backbone, recipe.chunk_frames), recipe.grad_accumulation * ranks.count
    places = (backbone.latent_shape[0] - recipe.chunk_frames) // step + 1
    drawn = torch.randint(places, (parts,), generator=generator)
    return [step * int(place) for place in drawn[ranks.part(parts)]]


def check_window(backbone: Backbone, recipe: Recipe) -> None:
    """Raise `InputError` for a `chunk_frames` that the model cannot be trained with."""
    if recipe.chunk_frames is not None:
        _window_step(backbone, recipe.chunk_frames)


def _window_step(backbone: Backbone, chunk_frames: int) -> int:
    """What windows of so many frames begin and end at multiples of, or `InputError`."""
    if not isinstance(backbone, WindowedBackbone):
        raise InputError(f"chunk_frames is for video, and {backbone.name} makes pictures: leave it out")
    frames, step = backbone.latent_shape[0], backbone.window_step
    if chunk_frames > frames or chunk_frames % step:
        raise InputError(
            f"chunk_frames is {chunk_frames}, but a clip has {frames} latent frames and windows are multiples of "
            f"{step}: choose {step} to {frames}"
        )
    return step


def _noise(look: Look, s: Tensor, noise: Tensor, dropped: Tensor, backbone: Backbone) -> Noised:
    """x_s ~ q(x_s | x_t), and the null prompt for the rows that are to drop theirs."""
    x_t, at = look.x_t, backbone.schedule.at
    noise = noise.to(x_t)
    x_s = renoise(x_t, noise, at(look.t, like=x_t), at(s, like=x_t))
    prompt = look.prompt.masked_fill(dropped.to(look.prompt.device), NULL)
    return Noised(look=look, x_s=x_s, s=s, prompt=prompt, noise=noise)


def update_loss(noised: Noised, denoisers: Denoisers, recipe: Recipe) -> Tensor:
    """The recipe's objective for one part of an update: a scalar with gradient."""
    look, at = noised.look, (noised.x_s, noised.s, noised.prompt, noised.first)
    if recipe.loss == "denoising":
        level, kind = denoisers.backbone.schedule.at(noised.s, like=noised.x_s), denoisers.backbone.prediction_type
        truth = Estimate(look.weak.x0, noised.noise)
        return denoising_loss(denoisers.student(*at), truth, noised.x_s, level, kind, recipe.loss_weighting)
    reference = denoisers.base(*at).x0 if recipe.objective == "dpo" else None
    x0 = denoisers.student(*at).x0
    if recipe.objective == "tdft":
        return tdft_loss(x0, look.weak.x0, recipe.loss)
    assert look.strong is not None
    if recipe.objective == "gradient_reversal":
        return gradient_reversal_loss(x0, look.weak.x0, look.strong.x0, recipe.reversal_lambda, recipe.loss)
    assert reference is not None
    return npo_dpo_loss(x0, reference, look.weak.x0, look.strong.x0, recipe.dpo_beta, recipe.loss)


def teacher_rows(recipe: Recipe, first: int = 0) -> float:
    """Rows of teacher forwards that one row of an update costs, on average (a doubled batch counts twice).

    first: the grid index at which training begins, if not the grid's first.
    """
    target, step = (1 if w in (0, -1) else 2 for w in (recipe.teacher_guidance, recipe.step_guidance))
    last = 2 if recipe.needs_strong else target
    if recipe.pool_target == "endpoint":
        return step
    if recipe.rollout == "pool":
        look = last if recipe.step_guidance == recipe.teacher_guidance else 2
        return look + step * first / (recipe.grid_steps - first)
    if recipe.rollout == "samples":
        return 0
    if recipe.rollout == "full":
        return recipe.grid_steps * target
    return (max(recipe.truncation_steps, first) + recipe.grid_steps - 1) / 2 * step + last


def reference_rows(recipe: Recipe) -> float:
    """Rows of base forwards that one row of an update costs."""
    return 1 if recipe.objective == "dpo" else 0
