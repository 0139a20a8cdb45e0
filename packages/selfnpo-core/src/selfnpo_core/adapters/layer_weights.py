"""A layer's own weights: which layers are linear in theirs, what they make of others, and what 16 bits leave of a sum.

θ in 16 bits lies on a grid, and θ + β·δ, rounded to that grid, loses what of β·δ is under half a unit in the last
place: at a drift ‖δ‖/‖θ‖ of 0.1 % most elements do not change at all. But most layers are linear in their weights,

    y(x; θ + β·δ) = y(x; θ) + β·y(x; δ)      linear maps, convolutions, norms with weight and bias, embeddings

and δ alone is as precise in 16 bits as any number. A second product so keeps what the sum would lose.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

log = logging.getLogger(__name__)
SAID_FROM = 0.05
"""The share of ‖β·δ‖ from which on it is said at attach that it is lost."""
_LINEAR_IN_WEIGHTS = (nn.Linear, _ConvNd, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RMSNorm)


def modules_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """By name, without LoRA's own name for the layers that it wraps."""
    modules = dict(denoiser.named_modules())
    wrapped = {name.removesuffix(".base_layer"): m for name, m in modules.items() if name.endswith(".base_layer")}
    return modules | wrapped


def is_linear_in_weights(layer: nn.Module) -> bool:
    """Whether y(x; θ + δ) = y(x; θ) + y(x; δ)."""
    return isinstance(layer, _LINEAR_IN_WEIGHTS)


def is_rounding(tensor: Tensor) -> bool:
    """Whether sums are rounded to fewer bits than float32's."""
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4


@contextmanager
def weights_in_place(layer: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The layer with these in the place of its own weights, which are not written to, and zeros for those not named."""
    own = dict(layer.named_parameters(recurse=False))
    before = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            if name in weights:
                parameter.data = weights[name]
            elif name == "bias":
                layer.bias = None
            else:
                parameter.data = parameter.data.new_zeros(()).expand_as(parameter.data)
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = before[name]
            setattr(layer, name, parameter)


def add_rows(output: Tensor, rows: slice, part: Tensor, times: float, *, own: bool) -> Tensor:
    """output: (rows, …) with times·part added to some rows. own: whether it may be written to."""
    if torch.is_grad_enabled() and not own:
        output = output.clone()
    output[rows].add_(part, alpha=times)
    return output


def lost_by_rounding(base: Tensor, change: Tensor) -> tuple[float, float]:
    """(‖round(θ + change) − θ − change‖, ‖change‖), θ's own bits being those of the sum."""
    change = change.to(base.device, torch.float32)
    exact = base.detach().float() + change
    return float((exact.to(base.dtype).float() - exact).norm()), float(change.norm())


def say_what_is_lost(how: str, error: float, advice: str) -> None:
    """Of the offset, once at attach, if it is much."""
    if error > SAID_FROM:
        log.warning("%s: the negative weights that act are %.0f %% of their size off: %s", how, 100 * error, advice)


def split_weights(exact: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A float32 tensor as the sum of two of fewer bits: rounded, and what was rounded off."""
    rounded = exact.to(dtype)
    return rounded, (exact - rounded.float()).to(dtype)


def run_with(layer: nn.Module, weights: Mapping[str, Tensor], run: Any, *args: Any, **kwargs: Any) -> Any:
    """y(x; weights) of a layer that is linear in them. run: its forward."""
    with weights_in_place(layer, weights):
        return run(*args, **kwargs)
