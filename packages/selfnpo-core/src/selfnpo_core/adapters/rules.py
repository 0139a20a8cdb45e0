"""Other rules of guidance that need no training: what Self-NPO is compared with, and may be joined to.

A stock pipeline computes n + g·(p − n) from what its denoiser returns for the negative and the positive rows. A rule
gives it another n and p, such that this very line computes the rule's prediction:

    CFG-Zero*       (s·n, p)                        s = ⟨p, n⟩/‖n‖², of velocities; (0, 0) at first   2503.18886
    APG             (p − Δ, p)                      Δ: p − n of x̂0, with momentum, clipped, projected  2410.02416
    rescaling       (ε̂, ε̂)                         ε̂ = n + g·(p − n), of p's standard deviation       2305.08891
    interval        (p, p) outside of it            the negative rows are not run there                2404.07724
    PAG, SLG        (n + s·(p − q), p + s·(p − q))  q: the positive rows of a weakened network         2403.17377

Rules that ask negative weights are in `negative_rules`. Autoguidance (2406.02507) is `NegativeDelta` with an earlier
state of the model and condition "prompt". A rule asks its `GuidanceStep` for the forwards that it needs, so what it
saves or adds is really saved or run.
Shapes: n, p, q: (B, *S).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor, nn

from selfnpo_core.errors import InputError
from selfnpo_core.guidance import guide
from selfnpo_core.prediction import from_estimate, to_estimate
from selfnpo_core.schedule import NoiseLevel

Pair = tuple[Tensor, Tensor]
"""What the network predicts for the negative and for the positive rows, in its own prediction type."""
Weaken = Callable[[nn.Module], AbstractContextManager[None]]
"""Makes a denoiser weaker for the duration of a `with` block."""


@dataclass(frozen=True)
class Rows:
    """The rows of one branch of the pipeline, and what they get of the attached negative weights; 0 is the base."""

    branch: Literal["negative", "positive"]
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GuidanceStep:
    """One denoising step of a pipeline call, as a rule sees it.

    x_t: (B, *S), the rows of one branch, float32; level: their noise; scale: the call's guidance scale g.
    index, total: which step of how many. memory: the rule's own, empty at the beginning of every call.
    both: the two predictions, from one forward of 2B rows; positive: p alone, from B rows, in a weakened network
        if asked for; predict: those of k branches, each with a share of the negative weights, from one forward of k·B
        rows. Float32.
    """

    x_t: Tensor
    level: NoiseLevel
    prediction_type: str
    scale: float
    index: int
    total: int
    memory: dict[str, Any]
    both: Callable[[], Pair]
    positive: Callable[[Weaken | None], Tensor]
    predict: Callable[..., tuple[Tensor, ...]]

    @property
    def noise_to_signal(self) -> float:
        """σ/α, infinite where there is no signal."""
        alpha, sigma = (float(part.flatten()[0]) for part in (self.level.alpha, self.level.sigma))
        return sigma / alpha if alpha else math.inf

    def with_share(self, share: float) -> GuidanceStep:
        """This step with so much of the negative weights, wherever a rule asks for them."""

        def predict(*asked: Rows) -> tuple[Tensor, ...]:
            return self.predict(*(replace(rows, share=share * rows.share) for rows in asked))

        def both() -> Pair:
            negative, positive = predict(Rows("negative", 1.0), Rows("positive"))
            return negative, positive

        return replace(self, both=both, predict=predict)

    def change(self, prediction: Tensor, into: str) -> Tensor:
        """The network's prediction as one of another type."""
        return self._convert(prediction, self.prediction_type, into)

    def change_back(self, prediction: Tensor, out_of: str) -> Tensor:
        return self._convert(prediction, out_of, self.prediction_type)

    def _convert(self, prediction: Tensor, old: str, new: str) -> Tensor:
        if old == new:
            return prediction
        if prediction.shape != self.x_t.shape:
            raise InputError(
                f"this rule wants a network whose output is as its input, not {tuple(prediction.shape[1:])} from "
                f"{tuple(self.x_t.shape[1:])}: use it with a text-to-image or text-to-video pipeline"
            )
        return from_estimate(to_estimate(prediction, self.x_t, self.level, old), self.x_t, self.level, new)


Rule = Callable[[GuidanceStep], Pair]


def plain(step: GuidanceStep) -> Pair:
    """Classifier-free guidance (2207.12598)."""
    return step.both()


@dataclass(frozen=True, kw_only=True)
class ZeroStar:
    """CFG-Zero* (2503.18886): the negative velocity is scaled to the positive one, (s·n, p); s = ⟨p, n⟩/‖n‖².

    Made for flow matching. A variance-preserving model is one too, in x_t/(α + σ): there its velocity is ε̂ − x̂0. Of
    these s is taken, whatever the network predicts; on a flow model nothing is changed. first: steps at the beginning
    at which the velocity is zero, and no row is run.
    """

    first: int = 0
    rule: Rule = plain

    def __call__(self, step: GuidanceStep) -> Pair:
        if step.index < self.first:
            still = step.change_back(torch.zeros_like(step.x_t), "flow")
            return still, still
        negative, positive = self.rule(step)
        v, wanted = step.change(negative, "flow"), step.change(positive, "flow")
        scale = cfg_zero_star_scale(wanted.flatten(1), v.flatten(1)).reshape(-1, *(1,) * (v.ndim - 1))
        return step.change_back(scale * v, "flow"), positive


@dataclass(frozen=True, kw_only=True)
class Projected:
    """APG (2410.02416): (p − Δ, p), where Δ comes of p − n in three steps, all of x̂0 as in the paper.

    Momentum: Δ ← Δ + momentum·(the last Δ). Clipping: ‖Δ‖ ≤ norm·√(elements of a row); none where norm is 0.
    Projection: the part of Δ along p is multiplied by eta. The paper's values for SDXL are eta 0, momentum −0.5 and
    ‖Δ‖ ≤ 15 on 4×128×128 latents, which is norm 0.0586. diffusers' guider does the same of the raw prediction.
    """

    eta: float = 0.0
    norm: float = 15 / 256
    momentum: float = -0.5
    rule: Rule = plain

    def __call__(self, step: GuidanceStep) -> Pair:
        negative, positive = self.rule(step)
        x0 = step.change(positive, "sample")
        buffer = step.memory.setdefault("apg", MomentumBuffer(self.momentum))
        longest = self.norm * x0[0].numel() ** 0.5
        # p + (−1)·Δ
        opposite = normalized_guidance(x0, step.change(negative, "sample"), -1.0, buffer, self.eta, longest, True)
        return step.change_back(opposite, "sample"), positive


@dataclass(frozen=True, kw_only=True)
class Rescaled:
    """Guidance rescaling (2305.08891, 3.4): ε̂ is given p's standard deviation, to the share `share`.

    Of the network's own output, as the pipelines that have `guidance_rescale` do it.
    """

    share: float = 0.7
    rule: Rule = plain

    def __call__(self, step: GuidanceStep) -> Pair:
        if step.memory.setdefault("scale", step.scale) != step.scale:
            raise InputError("rescaling wants one guidance scale at all steps: leave dynamic guidance out")
        negative, positive = self.rule(step)
        guided = rescale_noise_cfg(guide(negative, positive, step.scale), positive, self.share)
        return guided, guided


@dataclass(frozen=True, kw_only=True)
class GuidanceInterval:
    """Guidance at some noise levels only (2404.07724): where low < σ/α ≤ high. Elsewhere p, from half the rows.

    The paper's interval for SDXL is (0.28, 5.42]. `rule` is what is done inside.
    """

    low: float = 0.28
    high: float = 5.42
    rule: Rule = plain

    def __call__(self, step: GuidanceStep) -> Pair:
        alpha, sigma = step.level.alpha.flatten()[0], step.level.sigma.flatten()[0]
        if self.low * alpha < sigma <= self.high * alpha:
            return self.rule(step)
        positive = step.positive(None)
        return positive, positive


@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """Away from a weakened network too: s·(p − q) is added to both, q being a third forward of the positive rows.

    Perturbed-attention guidance (2403.17377) with `identity_attention` at all steps; skip-layer guidance (SD3.5's
    reference code: s 2.8 at 0.01 < step/steps < 0.2) with `skipped_blocks`. Both are in
    `selfnpo_core.adapters.weakening`.
    """

    weaken: Weaken
    strength: float
    start: float = -1.0
    stop: float = 1.0
    rule: Rule = plain

    def __call__(self, step: GuidanceStep) -> Pair:
        negative, positive = self.rule(step)
        if not self.start * step.total < step.index < self.stop * step.total:
            return negative, positive
        away = self.strength * (positive - step.positive(self.weaken))
        return negative + away, positive + away
