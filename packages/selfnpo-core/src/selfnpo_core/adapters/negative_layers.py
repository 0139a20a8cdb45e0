"""Full-weight negative offsets in one forward: θ_neg = θ + β·δ layer by layer, on the negative rows only.

Where `NegativeDelta` keeps a second copy of the weights and runs the denoiser twice, here each layer has its part of δ,
in 8 or 16 bits or as two factors:

    θ in float32    y(x; θ + β·δ)               the sum is made when the layer runs, and dropped again
    θ in 16 bits    y(x; θ) + β·y(x; δ)         the sum, rounded to θ's grid, loses a small δ (`layer_weights`)
    two factors     y(x; θ) + β·up(down(x))     of whatever θ

The first has as many multiplications as plain guidance and costs making the weights at every step; the second costs one
more product on the negative rows, the third little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfnpo_core.adapters.branches import OF_NEGATIVE_ROWS, Block, Branches, Condition
from selfnpo_core.adapters.hooks import batch_of, check_not_fused, forward_of, replace_forward, strength
from selfnpo_core.adapters.layer_weights import (
    add_rows,
    is_linear_in_weights,
    is_rounding,
    lost_by_rounding,
    modules_of,
    run_with,
    say_what_is_lost,
)
from selfnpo_core.adapters.negative_delta import base_parameters, is_compiled, load_delta
from selfnpo_core.errors import InputError
from selfnpo_core.negative import Factors, compose, nearest

Store = Literal["exact", "bf16", "int8"]
"""How δ is kept, or as a number, the rank of the product that is kept in the place of each matrix."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in fewer bits. values: of its shape; scale: float32, one for each row of dimension 0, or None."""

    values: Tensor
    scale: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor, store: Store) -> Stored:
        """int8 is symmetric, a scale for each output channel; vectors (biases, norms) are too few to be worth it."""
        if store == "exact":
            return cls(values=tensor, scale=None)
        if store == "bf16" or tensor.ndim < 2:
            return cls(values=tensor.to(torch.bfloat16), scale=None)
        largest = tensor.float().flatten(1).abs().amax(dim=1)
        scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
        scale = scale.reshape(-1, *(1,) * (tensor.ndim - 1))
        return cls(values=(tensor.float() / scale).round().to(torch.int8), scale=scale)

    def to(self, device: torch.device) -> Stored:
        return Stored(values=self.values.to(device), scale=None if self.scale is None else self.scale.to(device))

    def times(self, factor: float, dtype: torch.dtype) -> Tensor:
        """factor·δ in this dtype."""
        if self.scale is None and factor == 1:
            return self.values.to(dtype)
        wide = self.values.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return (wide * (factor if self.scale is None else self.scale * factor)).to(dtype)

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """A linear map's or a convolution's weight as the nearest product of two factors."""

    factors: Factors

    def to(self, device: torch.device) -> LowRank:
        own = self.factors
        return LowRank(factors=replace(own, down=own.down.to(device), up=own.up.to(device)))

    def times(self, factor: float, dtype: torch.dtype) -> Tensor:
        """factor·δ in this dtype."""
        return (self.factors.product() * factor).to(dtype)

    def up(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The second of the two maps. x: what the first, `down`, made."""
        weight = (self.factors.up * (self.factors.alpha / self.factors.rank)).to(x.dtype)
        return F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias)

    @property
    def device(self) -> torch.device:
        return self.factors.up.device

    @property
    def nbytes(self) -> int:
        return self.factors.up.nbytes + self.factors.down.nbytes


Kept = Stored | LowRank


class NegativeLayers:
    """A full-weight offset put on a pipeline's negative branch, in one forward. Made by `attach`; a context manager."""

    @classmethod
    def attach(
        cls,
        pipe: Any,
        delta: Mapping[str, Tensor] | str | Path,
        *,
        beta: float = 1.0,
        condition: Condition = "null",
        store: Store | int = "bf16",
        shares: tuple[float, float] = OF_NEGATIVE_ROWS,
    ) -> NegativeLayers:
        """Put the offset δ (parameter name → difference, or a .safetensors file of them) on the negative branch.

        store: how δ is kept: "exact" in its own dtype, "bf16", or "int8" (the largest rounding error of an element is
            1/254 of the largest in its output channel). A number: the weight of each linear map and plain convolution
            as the nearest product of that rank, all else in bf16. `error` says what is lost, in ‖δ‖, and from 5 % on a
            warning does.
        condition, shares: as for `NegativeAdapters`. LoRAs that are active in the pipeline act on both branches.

        Raises `InputError` as `NegativeDelta` does, for a compiled denoiser, and for parameters that are not a layer's
        own weights.
        """
        read = delta if isinstance(delta, Mapping) else load_delta(Path(delta))
        return cls(pipe, read, beta, condition, store, shares)

    def __init__(
        self,
        pipe: Any,
        delta: Mapping[str, Tensor],
        beta: float,
        condition: Condition,
        store: Store | int,
        shares: tuple[float, float],
    ) -> None:
        if store not in get_args(Store) and (isinstance(store, str) or store < 1):
            raise InputError(f"store '{store}' is unknown: use {', '.join(get_args(Store))}, or a rank")
        self._beta = strength(beta, "beta")
        self._branches = Branches(pipe, condition, self._check, shares=shares)
        if len(self._branches.denoisers) > 1:
            raise InputError(f"a full-weight offset is for one denoiser, not {' and '.join(self._branches.denoisers)}")
        ((self._name, self._denoiser),) = self._branches.denoisers.items()
        self._called = getattr(pipe, self._name)
        if is_compiled(self._called):
            raise InputError("a compiled denoiser cannot be changed layer by layer: use NegativeDelta (mode 'swap')")
        self._layers, self.error = _layers(self._denoiser, delta, store)
        for name in delta:
            self._branches.check_even(name)
        self._in_place: list[Callable[[], bool]] = []
        self._check()
        with ExitStack() as undo:
            self._branches.watch(undo)
            undo.callback(self._denoiser.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            for layer, stored in self._layers:
                self._wrap(undo, layer, stored)
            self._undo = undo.pop_all()
        kept = f"kept as {store}" if isinstance(store, str) else f"kept as products of rank {store}"
        say_what_is_lost(kept, self.error, "keep more bits or a higher rank, or use mode swap")

    @property
    def beta(self) -> float:
        return self._beta

    @property
    def nbytes(self) -> int:
        """What δ takes in memory."""
        return sum(part.nbytes for _, stored in self._layers for part in stored.values())

    def set_strength(self, beta: float) -> None:
        """Change β."""
        self._beta = strength(beta, "beta")

    def detach(self) -> None:
        """Leave pipeline and weights as they were found."""
        self._branches.check_outermost()
        self._undo.close()

    def __enter__(self) -> NegativeLayers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _check(self) -> None:
        """At the beginning of every pipeline call."""
        if getattr(self._branches.pipe, self._name) is not self._called or is_compiled(self._called):
            raise InputError("the denoiser was compiled or replaced: detach() the negative weights, attach them anew")
        if not all(test() for test in self._in_place):
            raise InputError("a layer's forward was replaced by something else: detach() and attach anew")
        check_not_fused(self._denoiser)
        for layer, stored in self._layers:
            for name in stored:
                if getattr(layer, name).is_meta:
                    raise InputError("weights offloaded layer by layer cannot be read: use enable_model_cpu_offload()")

    def _enter(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._branches.enter(batch_of(args, kwargs))

    def _wrap(self, undo: ExitStack, layer: nn.Module, stored: dict[str, Kept]) -> None:
        run = forward_of(layer)

        def split(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            """One layer's forward. x: (rows, …), a row of the batch being one or more of them."""
            blocks = [(rows, share * self._beta) for rows, share in self._branches.blocks(x.shape[0])]
            if not any(beta for _, beta in blocks):
                return run(x, *args, **kwargs)
            if _is_apart(layer, stored):
                return self._sum(blocks, layer, stored, run, x, *args, **kwargs)
            done = [self._at(beta, layer, stored, run, x[rows], *args, **kwargs) for rows, beta in blocks]
            return done[0] if len(done) == 1 else torch.cat(done)

        replace_forward(undo, layer, split)
        self._in_place.append(lambda: forward_of(layer) is split)

    def _at(
        self, beta: float, layer: nn.Module, stored: dict[str, Kept], run: Any, x: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The layer at θ + β·δ. Its parameters point elsewhere for the moment; θ is not written to."""
        if beta == 0:
            return run(x, *args, **kwargs)
        base = {name: getattr(layer, name).data for name in stored}
        try:
            for name, tensor in base.items():
                wide = torch.float32 if tensor.dtype.itemsize <= 4 else tensor.dtype
                changed = tensor.to(wide) + _here(stored, name, tensor.device).times(beta, wide)
                getattr(layer, name).data = changed.to(tensor.dtype)
            return run(x, *args, **kwargs)
        finally:
            for name, tensor in base.items():
                getattr(layer, name).data = tensor

    def _sum(
        self,
        blocks: Sequence[Block],
        layer: nn.Module,
        stored: dict[str, Kept],
        run: Any,
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The layer at θ, and what δ adds to the rows that have it."""
        output, own = run(x, *args, **kwargs), False
        for rows, beta in blocks:
            if beta:
                part = _alone(layer, stored, run, x[rows], *args, **kwargs)
                output, own = add_rows(output, rows, part, beta, own=own), True
        return output


def _is_apart(layer: nn.Module, stored: Mapping[str, Kept]) -> bool:
    """Whether the layer is computed at θ and at δ, and not at their sum."""
    if any(isinstance(kept, LowRank) for kept in stored.values()):
        return True
    return is_linear_in_weights(layer) and any(is_rounding(getattr(layer, name)) for name in stored)


def _alone(layer: nn.Module, stored: dict[str, Kept], run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """y(x; δ) of one layer."""
    own = {name: getattr(layer, name).data for name in stored}
    kept = {name: _here(stored, name, tensor.device) for name, tensor in own.items()}
    whole = {name: part for name, part in kept.items() if not isinstance(part, LowRank)}
    weights = {name: part.times(1.0, own[name].dtype) for name, part in whole.items()}
    product = kept.get("weight")
    if not isinstance(product, LowRank):
        result: Tensor = run_with(layer, weights, run, x, *args, **kwargs)
        return result
    down = {"weight": product.factors.down.to(own["weight"].dtype)}
    return product.up(run_with(layer, down, run, x, *args, **kwargs), weights.get("bias"))


def _here(stored: dict[str, Kept], name: str, device: torch.device) -> Kept:
    """One part of δ where the layer is, from now on."""
    if stored[name].device != device:
        stored[name] = stored[name].to(device)
    return stored[name]


def _layers(
    denoiser: nn.Module, delta: Mapping[str, Tensor], store: Store | int
) -> tuple[list[tuple[nn.Module, dict[str, Kept]]], float]:
    """Every layer that δ changes, with its part of δ by the name of its own parameter; and ‖δ − kept‖/‖δ‖."""
    own = base_parameters(denoiser)
    meta = {name: torch.empty_like(own[name], device="meta") for name in delta if name in own}
    compose(meta, delta={name: torch.empty_like(d, device="meta") for name, d in delta.items()})
    modules = modules_of(denoiser)
    found: dict[str, dict[str, Kept]] = {}
    lost, size = [], []
    for name, tensor in delta.items():
        path, _, parameter = name.rpartition(".")
        if not path or any(True for _ in modules[path].children()):
            raise InputError(f"'{name}' is no layer's own weight: use NegativeDelta (mode 'swap')")
        if not bool(tensor.any()):
            continue
        kept = _kept(modules[path], parameter, tensor, store)
        found.setdefault(path, {})[parameter] = kept
        whole = kept.times(1.0, torch.float32)
        lost.append(float((whole - tensor.detach().float()).norm()))
        if is_rounding(own[name]) and not is_linear_in_weights(modules[path]):
            lost.append(lost_by_rounding(own[name], whole)[0])
        size.append(float(tensor.detach().float().norm()))
    error = math.hypot(*lost) / math.hypot(*size) if size else 0.0
    return [(modules[path], stored) for path, stored in found.items()], error


def _kept(layer: nn.Module, name: str, tensor: Tensor, store: Store | int) -> Kept:
    if isinstance(store, str):
        return Stored.of(tensor, store)
    plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    return LowRank(factors=nearest(tensor, store)) if plain and name == "weight" else Stored.of(tensor, "bf16")
