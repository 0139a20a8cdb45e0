"""Control arms: a negative with some of what it does left out, so that what is left can be credited.

At a step, in x̂0-space and for each sample alone, the change of the null branch is taken apart as
`selfnpo_core.decomposition` has it, Δ = κ·m + k·d + r, and the null prediction becomes

    contrast           x̂0(∅) + κ·m              what a knob of contrast does
    scale              x̂0(∅) + k·d              what plain guidance of scale ω_e = g − (g − 1)·k does, k of this step
    without_contrast   x̂0(∅) + k·d + r
    rest               x̂0(∅) + r                what no knob does
    random_direction   x̂0(∅) + ‖Δ‖·u            u: of unit length, at random, another for every sample and step
    equal_scale        x̂0(∅) + k̄·d              plain guidance of one scale ω_e; k̄ of all noise levels together

‖Δε̂‖ = (α/σ)·‖Δ‖, so random_direction changes ε̂ by as much as the negative does. All but equal_scale ask for the null
prediction with and without the negative weights, three rows a step. Two controls are of weights and not of predictions,
and cost what the negative costs. Both are scaled as a whole so that ‖Δε‖ at the null prompt is the negative's:

    random_weights     δ replaced by Gaussian noise, tensor by tensor in proportion to δ's norm
    shuffled_weights   δ with the elements of every tensor permuted
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from selfnpo_core.adapters.rules import GuidanceStep, Pair, Rows, Rule
from selfnpo_core.decomposition import contrast, decompose, inner_products
from selfnpo_core.errors import InputError
from selfnpo_core.guidance import guide

CONTRAST, SCALE, REST = "contrast", "scale", "rest"
KEPT: Mapping[str, Collection[str]] = {
    "contrast": (CONTRAST,),
    "scale": (SCALE,),
    "without_contrast": (SCALE, REST),
    "rest": (REST,),
}
"""Controls that keep parts of Δ → which."""
WEIGHTS = {"random_weights": "random", "shuffled_weights": "shuffled"}
"""Controls that put other weights in δ's place → the arm of that."""
EQUAL = "equal_scale"
CONTROLS = (*KEPT, "random_direction", EQUAL, *WEIGHTS)


def take_apart(positive: Tensor, empty: Tensor, negative: Tensor) -> dict[str, Tensor]:
    """Δ in its three parts, of each row alone: all (B, *S), float64, of x̂0.

    Raises `InputError` where x̂0 is not finite, as that of an ε-prediction without signal.
    """
    rows = zip(positive, empty, negative, strict=True)
    found = [decompose(inner_products(*(x[None] for x in row))) for row in rows]
    shape = (-1, *(1,) * (empty.ndim - 1))
    kappa, k = (empty.new_tensor([getattr(one, name) for one in found]).view(shape) for name in ("kappa", "k"))
    if not bool(kappa.isfinite().all()):
        raise InputError("the network's x0 is not finite at this noise level: a negative cannot be taken apart there")
    parts = {CONTRAST: kappa * contrast(empty), SCALE: k * (positive - empty)}
    return {**parts, REST: negative - empty - parts[CONTRAST] - parts[SCALE]}


@dataclass(frozen=True, kw_only=True)
class Recombined:
    """The null prediction without negative weights, and of what they change the parts that are kept."""

    parts: Collection[str]

    def __call__(self, step: GuidanceStep) -> Pair:
        negative, positive = step.both()
        empty = _x0(step, step.predict(Rows("negative"))[0])
        parts = take_apart(_x0(step, positive), empty, _x0(step, negative))
        return _back(step, empty + sum(parts[name] for name in self.parts)), positive


@dataclass(frozen=True, kw_only=True)
class RandomDirection:
    """As much of a change as the negative makes, in a direction that is drawn anew for every sample and step.

    It comes of `seed` and of the noise that the sample began with, so batches do not matter.
    """

    seed: int = 0

    def __call__(self, step: GuidanceStep) -> Pair:
        negative, positive = step.both()
        empty = _x0(step, step.predict(Rows("negative"))[0])
        change = _x0(step, negative) - empty
        drawers = step.memory.setdefault("drawers", [self._drawer(row) for row in step.x_t])
        drawn = [torch.randn(empty.shape[1:], generator=drawer, dtype=torch.float64) for drawer in drawers]
        direction = torch.stack(drawn).to(empty.device)
        return _back(step, empty + direction * (_lengths(change) / _lengths(direction))), positive

    def _drawer(self, noise: Tensor) -> torch.Generator:
        digest = hashlib.sha256(noise.float().cpu().contiguous().numpy().tobytes() + str(self.seed).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True, kw_only=True)
class EqualScale:
    """Plain guidance whose scale is ω_e = g − (g − 1)·k where the pipeline is asked for g. No negative weights."""

    k: float

    def __call__(self, step: GuidanceStep) -> Pair:
        negative, positive = step.both()
        return guide(negative, positive, self.k), positive


def control_rule(name: str, seed: int = 0) -> Rule:
    """The rule of a control that is put around the negative weights themselves."""
    return Recombined(parts=KEPT[name]) if name in KEPT else RandomDirection(seed=seed)


def _x0(step: GuidanceStep, prediction: Tensor) -> Tensor:
    return step.change(prediction.double(), "sample")


def _back(step: GuidanceStep, x0: Tensor) -> Tensor:
    return step.change_back(x0, "sample").float()


def _lengths(x: Tensor) -> Tensor:
    """(B, 1, …): of each row."""
    return x.flatten(1).norm(dim=1).view(-1, *(1,) * (x.ndim - 1))
