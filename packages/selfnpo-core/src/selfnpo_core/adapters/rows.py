"""LoRAs that act on the negative rows only: negative guidance in one forward, without a second model.

    ε̂ = ε[θ_neg](x_t, t, c′) + g·(ε[θ](x_t, t, c) − ε[θ_neg](x_t, t, c′))        θ_neg = θ + Σ weight·LoRA

(Diffusion-NPO; Self-NPO, 2505.11777.) The adapter stays inactive in PEFT. A forward hook on each of its layers adds
weight·s·B·A·x to the rows that belong to the negative branch, with the scale s that the LoRA was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from selfnpo_core.adapters.branches import Branches, Condition, is_compiled
from selfnpo_core.errors import InputError


class NegativeAdapters:
    """Loaded LoRAs put on a pipeline's negative branch. Made by `attach`; a context manager."""

    def __init__(self, pipe: Any, weights: Mapping[str, float], condition: Condition, shared: Sequence[str]) -> None:
        self._pipe, self._weights, self._shared = pipe, dict(weights), tuple(shared)
        self._branches = Branches(pipe, condition, self._check)
        self._layers = {
            name: module
            for name, module in self._branches.denoiser.named_modules()
            if isinstance(module, LoraLayer) and any(_has(module, adapter) for adapter in weights)
        }
        self._check_adapters()
        self._handles = [layer.register_forward_hook(self._add) for layer in self._layers.values()]
        for layer in self._layers.values():
            layer._active_adapter = [a for a in layer.active_adapters if a not in self._negative_only]
        self._branches.start()
        self._forget_compiled_graphs()

    @classmethod
    def attach(
        cls,
        pipe: Any,
        adapters: Mapping[str, float],
        *,
        condition: Condition = "null",
        shared: Sequence[str] = (),
    ) -> NegativeAdapters:
        """Put adapters, already loaded into `pipe`, on its negative branch.

        adapters: name → what the negative rows get in addition to what all rows get, so β for Self-NPO's weights.
            For a preference-tuned base θ + η with η a LoRA that stays active, θ + α·η + β·δ on the negative side is
            {"npo": β, "eta": α − 1} with shared=("eta",).
        condition: the negative rows' prompt, "null" (or the call's `negative_prompt`), or "prompt" for the positive
            prompt itself (autoguidance, 2406.02507).
        shared: adapters among these that stay active for all rows. The others are deactivated, and must stay so.

        Raises `InputError` for a pipeline whose branches are not known, an adapter that is not loaded or is a DoRA, a
        pipeline that has negative weights already, and fused attention projections.
        """
        return cls(pipe, adapters, condition, shared)

    def set_strength(self, adapters: Mapping[str, float]) -> None:
        """Change the weights of attached adapters."""
        unknown = set(adapters) - set(self._weights)
        if unknown:
            raise InputError(f"adapter '{min(unknown)}' is not attached: attached are {', '.join(self._weights)}")
        self._weights.update(adapters)
        self._forget_compiled_graphs()

    def detach(self) -> None:
        """Take the hooks away. The adapters stay loaded, and inactive, so that guidance is plain again."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._branches.stop()
        self._forget_compiled_graphs()

    def __enter__(self) -> NegativeAdapters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def _negative_only(self) -> set[str]:
        return set(self._weights) - set(self._shared)

    def _check_adapters(self) -> None:
        for adapter in self._weights:
            layers = [layer for layer in self._layers.values() if _has(layer, adapter)]
            if not layers:
                loaded = sorted(_loaded(self._branches.denoiser))
                raise InputError(
                    f"adapter '{adapter}' is not loaded: load_lora_weights(…, adapter_name='{adapter}') first; loaded: "
                    f"{', '.join(loaded) or 'none'}"
                )
            if any(adapter in layer.lora_variant for layer in layers):
                raise InputError(
                    f"adapter '{adapter}' is a DoRA or another variant of LoRA: use a plain LoRA, or full weights"
                )
            if any(adapter in layer.merged_adapters for layer in layers):
                raise InputError(f"adapter '{adapter}' is fused into the weights of all rows: unfuse_lora() first")
        self._check_fused()

    def _check(self) -> None:
        """At the beginning of every pipeline call."""
        self._check_fused()
        for layer in self._layers.values():
            self._check_inactive(layer)

    def _check_fused(self) -> None:
        for name, module in self._branches.denoiser.named_modules():
            if getattr(module, "fused_projections", False):
                raise InputError(f"{name} has fused projections, which bypass the LoRA: unfuse_qkv_projections() first")

    def _check_inactive(self, layer: LoraLayer) -> None:
        for adapter in layer.active_adapters:
            if adapter in self._negative_only and _has(layer, adapter):
                raise InputError(
                    f"adapter '{adapter}' became active for all rows (loading another LoRA does that): attach anew, or "
                    f"set_adapters() without '{adapter}'"
                )

    def _add(self, layer: LoraLayer, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Forward hook: output + Σ weight·s·B·A·x on the negative rows. x: (rows, …) with the batch first."""
        self._check_inactive(layer)
        x = args[0]
        rows = self._branches.rows(len(x))
        if rows is None:
            return None
        change = None
        for adapter, weight in self._weights.items():
            if weight and _has(layer, adapter):
                down, up = layer.lora_A[adapter], layer.lora_B[adapter]
                part = up(down(x[rows].to(down.weight.dtype))) * (weight * trained_scale(layer, adapter))
                change = part if change is None else change + part
        if change is None:
            return None
        change = change.to(output.dtype)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch.cat([output[: rows.start], output[rows] + change, output[rows.stop :]])
        output[rows] += change
        return output

    def _forget_compiled_graphs(self) -> None:
        """Compiled graphs do not notice hooks that come or go after they were made: have them made anew."""
        if is_compiled(self._pipe, self._branches.layout.denoiser):
            torch._dynamo.reset()


def trained_scale(layer: LoraLayer, adapter: str) -> float:
    """α/r, or α/√r for rsLoRA (2312.03732): the scale of training, whatever weight the adapter was given since."""
    rank = layer.r[adapter]
    return layer.lora_alpha[adapter] / (rank**0.5 if layer.use_rslora.get(adapter, False) else rank)


def _has(layer: LoraLayer, adapter: str) -> bool:
    return adapter in layer.lora_A


def _loaded(denoiser: nn.Module) -> set[str]:
    return {adapter for module in denoiser.modules() if isinstance(module, LoraLayer) for adapter in module.lora_A}
