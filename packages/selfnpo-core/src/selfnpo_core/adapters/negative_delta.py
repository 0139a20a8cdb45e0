"""Full-weight negative offsets: θ_neg = θ + β·δ on the negative rows, in a forward of their own.

While the negative rows run, the parameters point at θ_neg's storage instead of θ's, which is never written to: θ comes
back bit for bit. Costs a second copy of the weights that δ names, and two smaller forwards in place of one. Where rows
get several strengths of δ, one after another, that copy is made anew for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from selfnpo_core.errors import InputError
from selfnpo_core.negative import compose
from selfnpo_core.system.private import compiled_call, set_compiled_call

_NOT_BY_ROW = frozenset({"image_rotary_emb", "img_ids", "txt_ids"})
"""Arguments of diffusers' denoisers whose first dimension is not the batch, though it may be as long."""


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
        self._made: tuple[float, dict[str, Tensor]] | None = None
        self._check()
        with ExitStack() as undo:
            self._branches.watch(undo)
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
        if self._made is None or self._made[0] != share:
            self._made = None  # before there is another
            self._made = share, compose(base, delta=self._delta, beta=share * self._beta)
        try:
            for name, tensor in self._made[1].items():
                self._parameters[name].data = tensor
            yield
        finally:
            for name, tensor in base.items():
                self._parameters[name].data = tensor

    def _split(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's forward: each part of the rows through the weights that are its own."""
        batch = batch_of(args, kwargs)
        self._branches.enter(batch)
        outputs = []
        for rows, share in self._branches.blocks(batch):
            whole = rows == slice(0, batch)
            own = (args, kwargs) if whole else (take(args, batch, rows), take(kwargs, batch, rows))
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
    return torch.cat([upper, lower]) if isinstance(upper, Tensor) else upper
