"""LoRAs that act on the negative rows only: negative guidance in one forward, without a second model.

    ε̂ = ε[θ_neg](x_t, t, c′) + g·(ε[θ](x_t, t, c) − ε[θ_neg](x_t, t, c′))        θ_neg = θ + Σ weight·LoRA

(Diffusion-NPO; Self-NPO, 2505.11777.) The adapter stays inactive in PEFT. A forward hook on each of its layers adds
weight·s·B·A·x to the rows that belong to the negative branch, with the scale s that the LoRA was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from selfnpo_core.adapters.branches import OF_NEGATIVE_ROWS, Branches, Condition
from selfnpo_core.adapters.hooks import batch_of, check_not_fused, forget_compiled_graphs, replace, strength
from selfnpo_core.errors import InputError
from selfnpo_core.system import private


class NegativeAdapters:
    """Loaded LoRAs put on a pipeline's negative branch. Made by `attach`; a context manager."""

    @classmethod
    def attach(
        cls,
        pipe: Any,
        weights: Mapping[str, float],
        *,
        condition: Condition = "null",
        shared: Sequence[str] | None = None,
        shares: tuple[float, float] = OF_NEGATIVE_ROWS,
    ) -> NegativeAdapters:
        """Put adapters, already loaded into `pipe`, on its negative branch.

        weights: adapter → what the negative rows get of it in addition to what all rows get; may be negative. It
            multiplies the scale of training, whatever weight `set_adapters` gave; of a shared adapter, the scale that
            it has for all rows. {"npo": β} is Self-NPO's.
        shared: those of the adapters that are active for all rows, and are kept so; the others are made inactive in
            PEFT, must stay so, and are left so by `detach`. To be given (perhaps empty) where there are several
            adapters. For a positive side θ + η and a negative side θ + α·η + β·δ: {"npo": β, "eta": α − 1} with
            shared=("eta",).
        condition: the negative rows' prompt: "null" is the call's `negative_prompt` or the empty one, "prompt" is the
            positive prompt itself, seen by the negative weights (autoguidance, 2406.02507).
        shares: what the negative rows, and all others, get of the weights: (−w, −w) is Neon (2510.03597), with guidance
            on or off.

        Raises `InputError` for a pipeline whose branches are not known, an adapter that is not there or is no plain
        LoRA, fused projections, and a model that has negative weights already; at the next pipeline call, or forward,
        if one of these came about since.
        """
        return cls(pipe, weights, condition, shared, shares)

    def __init__(
        self,
        pipe: Any,
        weights: Mapping[str, float],
        condition: Condition,
        shared: Sequence[str] | None,
        shares: tuple[float, float],
    ) -> None:
        if not weights:
            raise InputError("no adapter is named: attach(pipe, {'npo': 1.0})")
        self._weights = {name: strength(weight, f"the weight of '{name}'") for name, weight in weights.items()}
        self._shared = _shared(self._weights, shared)
        self._branches = Branches(pipe, condition, self._check, shares=shares)
        self._layers = self._find_layers()
        self._names = {layer: set(layer.lora_A) & set(weights) for _, _, layer in self._layers}
        self._attached = False
        self._check_elsewhere()
        self._check_plain()
        with ExitStack() as undo:
            undo.callback(forget_compiled_graphs)
            self._branches.watch(undo)
            self._set_active(undo)
            for denoiser in self._branches.denoisers.values():
                undo.callback(denoiser.register_forward_pre_hook(_enter, with_kwargs=True).remove)
            for _, _, layer in self._layers:
                replace(undo, layer, "_selfnpo", self)
                undo.callback(layer.register_forward_hook(_add_to_rows).remove)
            self._check()
            self._undo = undo.pop_all()
        self._attached = True
        forget_compiled_graphs()

    @property
    def weights(self) -> dict[str, float]:
        return dict(self._weights)

    def set_strength(self, weights: Mapping[str, float]) -> None:
        """Change the weights of attached adapters; those not named keep theirs."""
        for name in weights:
            if name not in self._weights:
                raise InputError(f"adapter '{name}' is not attached: attached are {', '.join(self._weights)}")
        self._weights.update({name: strength(weight, f"the weight of '{name}'") for name, weight in weights.items()})

    def detach(self) -> None:
        """Leave the pipeline as it was found, but with the adapters, those shared excepted, inactive.

        Loading one had made it active for all rows, where nobody means negative weights to act; `set_adapters` has them
        act there all the same. Adapters that were activated or deactivated since are left as they are.
        """
        self._branches.check_outermost()
        self._undo.close()

    def at_detach(self, last: Callable[[], None]) -> None:
        """Have `last` called by `detach`, after all else."""
        undo = ExitStack()
        undo.callback(last)
        undo.push(self._undo)
        self._undo = undo

    def __enter__(self) -> NegativeAdapters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def delta(self, layer: LoraLayer, x: Tensor, share: float) -> tuple[float, Tensor] | None:
        """(factor, change) of one layer, whose product is share·Σ weight·s·B·A·x for rows x; None where it is 0.

        Several adapters are summed before they are added to anything, as what is taken away may be what is added.
        """
        parts = []
        for name, weight in self._weights.items():
            if weight and share and name in layer.lora_A:
                down, up = layer.lora_A[name], layer.lora_B[name]
                scale = layer.scaling[name] if name in self._shared else trained_scale(layer, name)
                parts.append((share * weight * scale, up(down(x.to(down.weight.dtype)))))
        if len(parts) < 2:
            return parts[0] if parts else None
        return 1.0, torch.stack([factor * part for factor, part in parts]).sum(0)

    def check_layer(self, layer: LoraLayer) -> None:
        """Every adapter is still active for all rows, or for none, as it was at `attach`."""
        for name in self._weights:
            if name not in layer.lora_A or (active := _for_all_rows(layer, name)) == (name in self._shared):
                continue
            if active:
                raise InputError(
                    f"adapter '{name}' is active, or fused, for all rows: pipe.set_adapters() to the others, or "
                    "unfuse_lora(); or detach() and attach it anew"
                )
            raise InputError(
                f"shared adapter '{name}' is no longer active for all rows, as after loading another LoRA: "
                f"pipe.set_adapters() with '{name}' among them"
            )

    def _check(self) -> None:
        """At the beginning of every pipeline call."""
        for denoiser in self._branches.denoisers.values():
            check_not_fused(denoiser)
        for denoiser, path, layer in self._layers:
            there = _submodule(denoiser, path) is layer
            if not there or not self._names[layer] <= set(layer.lora_A):
                raise InputError("an attached adapter was deleted or unloaded: detach() the negative weights")
            self.check_layer(layer)

    def _find_layers(self) -> list[tuple[nn.Module, str, LoraLayer]]:
        """(denoiser, path in it, layer) of every layer that has one of the adapters."""
        every = [
            (denoiser, path, module)
            for denoiser in self._branches.denoisers.values()
            for path, module in denoiser.named_modules()
            if isinstance(module, LoraLayer)
        ]
        loaded = {name for _, _, layer in every for name in layer.lora_A}
        for name in self._weights:
            if name not in loaded:
                raise InputError(
                    f"the denoiser has no LoRA named '{name}', but {', '.join(sorted(loaded)) or 'none at all'}: "
                    f"pipe.load_lora_weights(…, adapter_name='{name}') first"
                )
        return [found for found in every if any(name in found[2].lora_A for name in self._weights)]

    def _check_plain(self) -> None:
        """A plain LoRA's effect is a sum, so that it can be added to some rows."""
        for _, path, layer in self._layers:
            self._branches.check_even(path)
            for name in self._weights:
                if name in layer.lora_variant:
                    raise InputError(
                        f"adapter '{name}' is a DoRA or other variant, whose effect is no sum: merge it into weights "
                        "and attach their difference with NegativeDelta"
                    )
            if not isinstance(layer.get_base_layer(), nn.Linear | _ConvNd):
                raise InputError(f"the LoRA on '{path}' is on neither a linear nor a convolution: use NegativeDelta")

    def _check_elsewhere(self) -> None:
        """Outside of the denoiser there are no negative rows."""
        only = set(self._weights) - self._shared
        for part, component in self._branches.pipe.components.items():
            if not isinstance(component, nn.Module) or part in self._branches.denoisers:
                continue
            for module in component.modules():
                if isinstance(module, LoraLayer) and (found := only & set(module.lora_A)):
                    raise InputError(
                        f"adapter '{min(found)}' also changes the {part}, for both branches: load it without that part"
                    )

    def _set_active(self, undo: ExitStack) -> None:
        """Active for all rows: the shared adapters and those that are none of ours.

        PEFT's own `set_adapter` would also set `requires_grad` throughout, so the layers' list is set directly.
        """
        for denoiser in self._branches.denoisers.values():
            for layer in denoiser.modules():
                if not isinstance(layer, LoraLayer):
                    continue
                before, active = private.active_adapter(layer), layer.active_adapters
                now = [name for name in active if name not in self._weights or name in self._shared]
                now += [name for name in self._shared if name in layer.lora_A and name not in now]
                private.set_active_adapter(layer, now)
                undo.callback(self._restore_active, layer, now, before)

    def _restore_active(self, layer: LoraLayer, ours: list[str], before: str | list[str]) -> None:
        """As they were before, if `attach` failed; after `detach` without those that were on the negative rows only."""
        if private.active_adapter(layer) != ours:
            return
        if self._attached:
            names = [before] if isinstance(before, str) else before
            before = [name for name in names if name not in self._weights or name in self._shared]
        private.set_active_adapter(layer, before)


def _enter(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before each forward of a denoiser."""
    branches: Any = denoiser._selfnpo
    branches.enter(batch_of(args, kwargs))


def _add_to_rows(layer: LoraLayer, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    """After each forward of a LoRA layer. args[0], output: (rows, …), a row of the batch being one or more of them.

    All state is read from the layer's own attribute, which `torch.compile` guards on; what a hook closes over it
    does not.
    """
    own: NegativeAdapters = layer._selfnpo
    own.check_layer(layer)
    x, changed = args[0], False
    for rows, share in own._branches.blocks(x.shape[0]):
        found = own.delta(layer, x[rows], share)
        if found is None:
            continue
        if not changed and (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            output = output.clone()
        factor, delta = found
        output[rows].add_(delta.to(output.dtype), alpha=factor)
        changed = True
    return output if changed else None


def trained_scale(layer: LoraLayer, name: str) -> float:
    """α/r, or α/√r for rsLoRA (2312.03732): the scale of training, whatever weight the adapter was given since."""
    rank = layer.r[name]
    return float(layer.lora_alpha[name] / (rank**0.5 if layer.use_rslora.get(name, False) else rank))


def _shared(weights: Mapping[str, float], shared: Sequence[str] | None) -> frozenset[str]:
    if shared is None:
        if len(weights) > 1:
            raise InputError(
                f"which of {', '.join(weights)} stay active on both branches? Say shared=('{list(weights)[-1]}',), or "
                "shared=() for none"
            )
        return frozenset()
    names = frozenset([shared] if isinstance(shared, str) else shared)
    for name in names:
        if name not in weights:
            raise InputError(f"shared adapter '{name}' has no weight: name it among the weights, or leave it out")
    return names


def _for_all_rows(layer: LoraLayer, name: str) -> bool:
    if layer.merged_adapters:
        return name in layer.merged_adapters
    return name in layer.active_adapters and not layer.disable_adapters


def _submodule(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None
