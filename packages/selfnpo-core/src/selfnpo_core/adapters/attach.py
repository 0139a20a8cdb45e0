"""Negative weights as training wrote them, put on a stock pipeline in one call."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

from selfnpo_core.adapters.branches import Condition, bare, layout_of
from selfnpo_core.adapters.delta import NegativeDelta
from selfnpo_core.adapters.rows import NegativeAdapters
from selfnpo_core.errors import InputError


def attach_npo(
    pipe: Any,
    path: str | Path,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    condition: Condition = "null",
    other_base: bool = False,
) -> NegativeAdapters | NegativeDelta:
    """Load a run's negative weights and put them on the pipeline's negative branch; a context manager.

    path: a run folder, its npo folder, or the weights file. A LoRA is loaded as adapter "npo", and taken out again by
        `detach()`; a full-weight offset runs in a second forward.
    alpha, beta: θ_neg = θ + α·η + β·δ. An α other than 1 needs η as a LoRA that is loaded as adapter "eta".
    other_base: let weights made for one base act on a relative of it, such as a preference-tuned model.

    Raises `InputError` where the file, its base or the pipeline do not fit, or where it has no effect.
    """
    from selfnpo_core.training.npo_folder import check_base, load_npo

    name = layout_of(pipe, condition).denoisers[0]
    denoiser = bare(getattr(pipe, name))
    npo = load_npo(path)
    if not other_base:
        check_base(npo, denoiser, getattr(pipe, "name_or_path", None) or f"this pipeline's {name}")
    eta = any("eta" in layer.lora_A for layer in _lora_layers(denoiser))
    if alpha != 1 and (npo.kind == "delta" or not eta):
        raise InputError(f"alpha is {alpha}: it needs negative weights that are a LoRA, and a LoRA loaded as 'eta'")
    if npo.kind == "delta":
        return NegativeDelta.attach(pipe, npo.tensors, beta=beta, condition=condition)
    with ExitStack() as undo:
        _load(pipe, denoiser, npo.path, undo)
        weights, shared = ({"npo": beta, "eta": alpha - 1}, ["eta"]) if alpha != 1 else ({"npo": beta}, [])
        negative = NegativeAdapters.attach(pipe, weights, shared=shared, condition=condition)
        negative.undo.push(undo.pop_all())
        return negative


def _load(pipe: Any, denoiser: nn.Module, file: Path, undo: ExitStack) -> None:
    """Load a LoRA file as adapter "npo", inactive; what is active stays so, though loading itself would change that."""
    before = {layer: layer._active_adapter for layer in _lora_layers(denoiser)}
    if any("npo" in layer.lora_A for layer in before):
        raise InputError(
            "an adapter 'npo' is loaded already: delete it, or use NegativeAdapters.attach(pipe, {'npo': …})"
        )
    undo.callback(partial(denoiser.delete_adapters, "npo") if before else denoiser.unload_lora)
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="npo")
    others = next(iter(before.values()), [])
    for layer in _lora_layers(denoiser):
        layer._active_adapter = before.get(layer, others)


def _lora_layers(denoiser: nn.Module) -> list[LoraLayer]:
    return [module for module in denoiser.modules() if isinstance(module, LoraLayer)]
