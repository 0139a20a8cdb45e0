"""Full-weight negative offsets: θ_neg = θ + β·δ on the negative rows, in a forward of their own.

While the negative rows run, the parameters' storage is exchanged with that of θ_neg, and exchanged back after, so θ
comes back bit for bit. Costs a second copy of the weights that δ names, and two smaller forwards in place of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfnpo_core.adapters.branches import Branches, Condition, is_compiled
from selfnpo_core.errors import InputError

_NOT_BY_ROW = frozenset({"image_rotary_emb", "img_ids", "txt_ids"})
"""Arguments of diffusers' denoisers that are not one row a sample."""


class NegativeDelta:
    """A full-weight offset put on a pipeline's negative branch. Made by `attach`; a context manager."""

    def __init__(self, pipe: Any, delta: Mapping[str, Tensor], beta: float, condition: Condition) -> None:
        self._branches = Branches(pipe, condition, self._check)
        self._denoiser = self._branches.denoiser
        if is_compiled(pipe, self._branches.layout.denoiser):
            raise InputError("full-weight negatives cannot act on a compiled denoiser: use it without torch.compile")
        self._delta, self._beta = dict(delta), beta
        self._check_names()
        self._negative: dict[str, Tensor] = {}
        self._forward = self._denoiser.forward
        self._denoiser.forward = self._split_forward
        self._branches.start()

    @classmethod
    def attach(
        cls, pipe: Any, delta: Mapping[str, Tensor] | str | Path, *, beta: float = 1.0, condition: Condition = "null"
    ) -> NegativeDelta:
        """Put the offset δ (parameter name → difference, or a .safetensors file of them) on the negative branch.

        Raises `InputError` for names or shapes that the denoiser has not, and for what `NegativeAdapters` refuses.
        """
        if not isinstance(delta, Mapping):
            delta = load_file(delta)
        return cls(pipe, delta, beta, condition)

    def set_strength(self, beta: float) -> None:
        """Change β."""
        self._beta, self._negative = beta, {}

    def detach(self) -> None:
        """Leave pipeline and weights as they were found."""
        if self._denoiser.__dict__.get("forward") == self._split_forward:
            del self._denoiser.forward
            self._branches.stop()
            self._negative = {}

    def __enter__(self) -> NegativeDelta:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _check(self) -> None:
        pass

    def _parameters(self) -> dict[str, nn.Parameter]:
        """By the names of a denoiser without LoRA: PEFT puts `base_layer` into those of the layers it wraps."""
        return {name.replace(".base_layer.", "."): p for name, p in self._denoiser.named_parameters()}

    def _check_names(self) -> None:
        own = self._parameters()
        for name, tensor in self._delta.items():
            if name not in own or own[name].shape != tensor.shape:
                raise InputError(
                    f"the offset's '{name}' {tuple(tensor.shape)} does not fit: load the model it was made for"
                )

    @torch.no_grad()
    def _prepare(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """θ + β·δ in the parameters' own device and dtype, made once, and again after the model was moved or cast."""
        for name, delta in self._delta.items():
            base, negative = parameters[name], self._negative.get(name)
            if negative is None or negative.device != base.device or negative.dtype != base.dtype:
                moved = delta.to(base.device, torch.float32)
                self._negative[name] = (base.float() + self._beta * moved).to(base.dtype)

    @contextmanager
    def _negative_weights(self) -> Iterator[None]:
        parameters = self._parameters()
        self._prepare(parameters)
        kept = {name: parameters[name].data for name in self._negative}
        try:
            for name, tensor in self._negative.items():
                parameters[name].data = tensor
            yield
        finally:
            for name, tensor in kept.items():
                parameters[name].data = tensor

    def _split_forward(self, *args: Any, **kwargs: Any) -> Any:
        sample = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        batch = len(sample)
        rows = self._branches.rows(batch)
        if rows is None:
            return self._forward(*args, **kwargs)
        if rows == slice(0, batch):
            with self._negative_weights():
                return self._forward(*args, **kwargs)
        other = slice(rows.stop, batch) if rows.start == 0 else slice(0, rows.start)
        outputs = {}
        with self._negative_weights():
            outputs[rows.start] = self._forward(*_take(args, batch, rows), **_take(kwargs, batch, rows))
        outputs[other.start] = self._forward(*_take(args, batch, other), **_take(kwargs, batch, other))
        return _join([outputs[start] for start in sorted(outputs)])


def _take(value: Any, batch: int, rows: slice) -> Any:
    """The rows of every tensor, in whatever it is nested, whose first dimension is the batch."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        return {k: v if k in _NOT_BY_ROW else _take(v, batch, rows) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_take(item, batch, rows) for item in value)
    return value


def _join(outputs: list[Any]) -> Any:
    """What one forward of all rows would have returned."""
    first = outputs[0]
    if isinstance(first, tuple):
        return (torch.cat([output[0] for output in outputs]), *first[1:])
    return type(first)(sample=torch.cat([output.sample for output in outputs]))
