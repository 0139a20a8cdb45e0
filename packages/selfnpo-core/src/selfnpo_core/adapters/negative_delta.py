"""Full-weight negative offsets: θ_neg = θ + β·δ on the negative rows, in a forward of their own.

While the negative rows run, the parameters point at θ_neg's storage instead of θ's, which is never written to: θ comes
back bit for bit. Costs a second copy of the weights that δ names, and two smaller forwards in place of one. Where rows
get several strengths of δ, one after another, that copy is made anew for each.

In 16 bits θ_neg is rounded, which takes most of a small β·δ. Where that is more than `KEPT_TO` of it, what was rounded
off is kept too, a third copy, and each layer that is linear in its weights adds its product with it (`layer_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from selfnpo_core.adapters.branches import OF_NEGATIVE_ROWS, Branches, Condition
from selfnpo_core.adapters.hooks import (
    bare,
    batch_of,
    check_not_fused,
    forward_of,
    replace_forward,
    runs,
    strength,
)
from selfnpo_core.adapters.layer_weights import (
    is_linear_in_weights,
    is_rounding,
    lost_by_rounding,
    modules_of,
    run_with,
    say_what_is_lost,
    split_weights,
)
from selfnpo_core.errors import InputError
from selfnpo_core.negative import compose
from selfnpo_core.system.private import compiled_call, set_compiled_call

_NOT_BY_ROW = frozenset({"image_rotary_emb", "img_ids", "txt_ids"})
"""Arguments of diffusers' denoisers whose first dimension is not the batch, though it may be as long."""
KEPT_TO = 0.01
"""The share of ‖β·δ‖ that rounding θ_neg may take before what it takes is kept apart."""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """θ + share·β·δ in θ's dtype by parameter, and by layer and parameter what rounding took, if that is kept."""

    share: float
    weights: dict[str, Tensor]
    rest: dict[nn.Module, dict[str, Tensor]]


class NegativeDelta:
    """A full-weight offset put on a pipeline's negative branch. Made by `attach`; a context manager."""

    @classmethod
    def attach(
        cls,
        pipe: Any,
        delta: Mapping[str, Tensor] | str | Path,
        *,
        beta: float = 1.0,
        condition: Condition = "null",
        shares: tuple[float, float] = OF_NEGATIVE_ROWS,
    ) -> NegativeDelta:
        """Put the offset δ (parameter name → difference, or a .safetensors file of them) on the negative branch.

        condition, shares: as for `NegativeAdapters`. LoRAs that are active in the pipeline act on both branches.

        Raises `InputError` for names or shapes that the denoiser has not, and for what `NegativeAdapters` refuses.
        """
        return cls(pipe, delta if isinstance(delta, Mapping) else load_delta(Path(delta)), beta, condition, shares)

    def __init__(
        self, pipe: Any, delta: Mapping[str, Tensor], beta: float, condition: Condition, shares: tuple[float, float]
    ) -> None:
        self._delta, self._beta = dict(delta), strength(beta, "beta")
        self._branches = Branches(pipe, condition, self._check, shares=shares)
        if len(self._branches.denoisers) > 1:
            raise InputError(f"a full-weight offset is for one denoiser, not {' and '.join(self._branches.denoisers)}")
        ((self._name, self._denoiser),) = self._branches.denoisers.items()
        self._called = getattr(pipe, self._name)
        self._in_place: Callable[[], bool] = lambda: True
        self._made: _Made | None = None
        self._rest: Mapping[nn.Module, dict[str, Tensor]] = {}
        self._check()
        apart = self._layers_apart()
        self.error = self._error(shares[0])
        """‖β·δ − what acts of it‖/‖β·δ‖, at attach."""
        with ExitStack() as undo:
            self._branches.watch(undo)
            for layer in apart:
                undo.callback(layer.register_forward_hook(self._add_rest, with_kwargs=True).remove)
            split = torch.compiler.disable(self._split)
            if is_compiled_in_place(self._called):  # outside of the compiled graph
                self._run: Any = compiled_call(self._called)
                undo.callback(set_compiled_call, self._called, self._run)
                set_compiled_call(self._called, split)
                self._in_place = lambda: compiled_call(self._called) is split
            else:
                self._run = forward_of(self._called)
                replace_forward(undo, self._called, split)
                self._in_place = lambda: runs(self._called, split)
            self._undo = undo.pop_all()
        say_what_is_lost("rounded to the base's 16 bits", self.error, "use a float32 base, or one that is not compiled")

    @property
    def beta(self) -> float:
        return self._beta

    def set_strength(self, beta: float) -> None:
        """Change β."""
        self._beta, self._made = strength(beta, "beta"), None

    def detach(self) -> None:
        """Leave pipeline and weights as they were found."""
        self._branches.check_outermost()
        self._undo.close()
        self._made = None

    def __enter__(self) -> NegativeDelta:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _check(self) -> None:
        """At the beginning of every pipeline call. θ may have been moved, cast or fused since the last one."""
        if getattr(self._branches.pipe, self._name) is not self._called:
            raise InputError("the denoiser was compiled or replaced: detach() the negative weights, attach them anew")
        if not self._in_place():
            raise InputError("the denoiser's forward was replaced by something else: detach() and attach anew")
        check_not_fused(self._denoiser)
        own = base_parameters(self._denoiser)
        self._parameters = {name: parameter for name, parameter in own.items() if name in self._delta}
        if any(parameter.is_meta for parameter in self._parameters.values()):
            raise InputError("weights offloaded layer by layer cannot be exchanged: use enable_model_cpu_offload()")
        meta = {name: torch.empty_like(p, device="meta") for name, p in self._parameters.items()}
        compose(meta, delta={name: torch.empty_like(d, device="meta") for name, d in self._delta.items()})
        self._made = None

    @contextmanager
    def _weights(self, share: float) -> Iterator[None]:
        """θ + share·β·δ in place of θ."""
        if share == 0:
            yield
            return
        base = {name: parameter.data for name, parameter in self._parameters.items()}
        if self._made is None or self._made.share != share:
            self._made = None  # before there is another
            self._made = self._make(base, share)
        try:
            for name, tensor in self._made.weights.items():
                self._parameters[name].data = tensor
            self._rest = self._made.rest
            yield
        finally:
            self._rest = {}
            for name, tensor in base.items():
                self._parameters[name].data = tensor

    def _make(self, base: Mapping[str, Tensor], share: float) -> _Made:
        beta = share * self._beta
        if self._lost(base, beta, base) <= KEPT_TO:
            return _Made(share=share, weights=compose(base, delta=self._delta, beta=beta), rest={})
        weights: dict[str, Tensor] = {}
        rest: dict[nn.Module, dict[str, Tensor]] = {}
        for name, tensor in base.items():
            delta = {name: self._delta[name]}
            if (place := self._places.get(name)) is None or not is_rounding(tensor):
                weights |= compose({name: tensor}, delta=delta, beta=beta)
                continue
            (exact,) = compose({name: tensor.float()}, delta=delta, beta=beta).values()
            weights[name], off = split_weights(exact, tensor.dtype)
            rest.setdefault(place[0], {})[place[1]] = off
        return _Made(share=share, weights=weights, rest=rest)

    def _layers_apart(self) -> list[nn.Module]:
        """Layers that can be asked for their product with what is rounded off.

        None of a compiled denoiser: a compiled graph does not see the hook that adds it.
        """
        compiled = [is_compiled(self._called), *(compiled_call(module) for module in self._denoiser.modules())]
        layers = {} if any(compiled) else modules_of(self._denoiser)
        self._places = {
            name: (layer, own)
            for name in self._delta
            for path, _, own in [name.rpartition(".")]
            if (layer := layers.get(path)) is not None and is_linear_in_weights(layer)
        }
        return list({layer: None for layer, _ in self._places.values()})

    def _add_rest(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After each forward of a layer."""
        rest = self._rest.get(layer)
        return None if rest is None else output + run_with(layer, rest, layer.forward, *args, **kwargs)

    def _error(self, share: float) -> float:
        base = {name: parameter.data for name, parameter in self._parameters.items()}
        return self._lost(base, share * self._beta, [name for name in base if name not in self._places])

    def _lost(self, base: Mapping[str, Tensor], beta: float, names: Collection[str]) -> float:
        """The share of ‖β·δ‖ that rounding the sum takes from these parameters."""
        if not any(is_rounding(base[name]) for name in names) or beta == 0:
            return 0.0
        found = {name: lost_by_rounding(tensor, beta * self._delta[name].float()) for name, tensor in base.items()}
        size = math.hypot(*(size for _, size in found.values()))
        return math.hypot(*(found[name][0] for name in names)) / size if size else 0.0

    def _split(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's forward: each part of the rows through the weights that are its own."""
        batch = batch_of(args, kwargs)
        self._branches.enter(batch)
        outputs = []
        for rows, share in self._branches.blocks(batch):
            whole = rows == slice(0, batch)
            own = (args, kwargs) if whole else _rows_of(args, kwargs, batch, rows)
            with self._weights(share):
                outputs.append(self._run(*own[0], **own[1]))
        return reduce(_join, outputs)


def load_delta(path: Path) -> dict[str, Tensor]:
    """A .safetensors file of weight differences."""
    try:
        return load_file(path)
    except (FileNotFoundError, IsADirectoryError, SafetensorError) as error:
        raise InputError(f"'{path}' is no readable .safetensors file of weight differences ({error})") from error


def base_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """By name, without LoRA's own name for the layers that it wraps."""
    return {name.replace(".base_layer.", "."): p for name, p in denoiser.named_parameters()}


def is_compiled(denoiser: nn.Module) -> bool:
    return bare(denoiser) is not denoiser or is_compiled_in_place(denoiser)


def is_compiled_in_place(denoiser: nn.Module) -> bool:
    """Whether `denoiser.compile()` was called, rather than `torch.compile(denoiser)`."""
    return bare(denoiser) is denoiser and compiled_call(denoiser) is not None


def _rows_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int, rows: slice) -> tuple[Any, Any]:
    """Of a denoiser's arguments; one that takes its sample as a list of a tensor a row has all its lists by row."""
    if args and isinstance(args[0], list):
        return _take_lists(args, rows), _take_lists(kwargs, rows)
    return take(args, batch, rows), take(kwargs, batch, rows)


def _take_lists(value: Any, rows: slice) -> Any:
    if isinstance(value, Mapping):
        return {name: _take_lists(item, rows) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_take_lists(item, rows) for item in value)
    by_row = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
    return value[rows] if by_row else value


def take(value: Any, batch: int, rows: slice | Tensor) -> Any:
    """The rows of every tensor, in whatever it is nested, whose first dimension is the batch."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and value.shape[0] == batch else value
    if isinstance(value, Mapping):
        return {name: item if name in _NOT_BY_ROW else take(item, batch, rows) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take(item, batch, rows) for item in value)
    return value


def _join(upper: Any, lower: Any) -> Any:
    """What one forward of all rows would have returned: a tuple, or an output class of diffusers."""
    if isinstance(upper, tuple):
        return tuple(_cat(*parts) for parts in zip(upper, lower, strict=True))
    return type(upper)(**{name: _cat(upper[name], lower[name]) for name in upper})


def _cat(upper: Any, lower: Any) -> Any:
    if isinstance(upper, list):
        return [*upper, *lower]
    return torch.cat([upper, lower]) if isinstance(upper, Tensor) else upper
