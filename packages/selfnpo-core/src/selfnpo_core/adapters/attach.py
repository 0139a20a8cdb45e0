"""From a run on disk to a pipeline's negative branch in one call, with everything checked that can be."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

from selfnpo_core.adapters.branches import Condition, find_denoisers, strength
from selfnpo_core.adapters.delta import NegativeDelta
from selfnpo_core.adapters.rows import NegativeAdapters
from selfnpo_core.errors import InputError

NPO, ETA = "npo", "eta"


def attach_npo(
    pipe: Any,
    path: str | Path,
    *,
    alpha: float = 1.0,
    beta: float | None = None,
    condition: Condition | None = None,
    other_base: bool = False,
) -> NegativeAdapters | NegativeDelta:
    """Load negative weights δ and put them on the pipeline's negative branch: θ + α·η + β·δ.

    path: a run folder, its npo folder, or the weights file.
    alpha: of the preference-tuned LoRA η, which is loaded as adapter "eta" and active on both branches.
    beta, condition: as `NegativeAdapters.attach`; None is what the weights recommend.
    other_base: also where θ is not the base that δ was trained on.

    A LoRA is loaded as adapter "npo"; `detach()` unloads it again. Raises `InputError` for weights of another base or
    without effect, and for all that `NegativeAdapters` and `NegativeDelta` refuse; the pipeline is then as it was.
    """
    from selfnpo_core.training.npo_folder import check_base, load_npo

    npo = load_npo(path)
    if beta is None:
        beta = npo.config.recommended.beta if npo.config else 1.0
    if condition is None:
        condition = npo.config.negative_condition if npo.config else "null"
    beta, alpha = strength(beta, "beta"), strength(alpha, "alpha")
    denoisers = find_denoisers(pipe, condition)
    if alpha != 1.0:
        _check_eta(denoisers, npo.kind)
    if not other_base:
        denoiser = next(iter(denoisers.values()))
        if any(parameter.is_meta for parameter in denoiser.parameters()):
            raise InputError("weights offloaded layer by layer cannot be read: attach before enabling the offload")
        check_base(npo, denoiser, getattr(pipe, "name_or_path", "") or type(pipe).__name__)
    if npo.kind == "delta":
        return NegativeDelta.attach(pipe, npo.tensors, beta=beta, condition=condition)

    weights, shared = ({NPO: beta}, ()) if alpha == 1.0 else ({NPO: beta, ETA: alpha - 1.0}, (ETA,))
    with ExitStack() as undo:
        _load_inactive(pipe, npo.path, denoisers, undo)
        negative = NegativeAdapters.attach(pipe, weights, condition=condition, shared=shared)
        negative.at_detach(undo.pop_all().close)
    return negative


def _check_eta(denoisers: Mapping[str, nn.Module], kind: str) -> None:
    if kind == "delta":
        raise InputError("alpha is for negative weights that are a LoRA, these are full weights: leave alpha at 1")
    if not any(ETA in layer.active_adapters for denoiser in denoisers.values() for layer in _lora_layers(denoiser)):
        raise InputError(
            f"alpha is the strength of a LoRA named '{ETA}', and none is active: load_lora_weights(…, "
            f"adapter_name='{ETA}') first, or leave alpha at 1"
        )


def _load_inactive(pipe: Any, file: Path, denoisers: Mapping[str, nn.Module], undo: ExitStack) -> None:
    """Load a LoRA as adapter "npo". Loading makes it active in place of all others: have those active that were."""
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{type(pipe).__name__} cannot load LoRAs: use weights that were trained in full")
    if any(NPO in getattr(denoiser, "peft_config", {}) for denoiser in denoisers.values()):
        raise InputError(f"the pipeline has an adapter '{NPO}' already: pipe.delete_adapters('{NPO}') first")
    active = {layer: layer.active_adapters for denoiser in denoisers.values() for layer in _lora_layers(denoiser)}
    undo.callback(_unload, pipe)
    try:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=NPO)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{file} is no LoRA for this model: load the base it was made for ({detail})") from error
    finally:
        for denoiser in denoisers.values():
            for layer in _lora_layers(denoiser):
                layer._active_adapter = active.get(layer, [])


def _unload(pipe: Any) -> None:
    """Without "npo", as before it was loaded. Where no other adapter is, the layers are plain again.

    A load that fails half-way leaves layers behind with nothing in them.
    """
    for component in pipe.components.values():
        if not isinstance(component, nn.Module) or not _lora_layers(component):
            continue
        loaded = getattr(component, "peft_config", {})
        if not set(loaded) - {NPO} and hasattr(component, "unload_lora"):
            component.unload_lora()
        elif NPO in loaded:  # diffusers' models and transformers' have a word each
            (component.delete_adapters if hasattr(component, "delete_adapters") else component.delete_adapter)(NPO)


def _lora_layers(denoiser: nn.Module) -> list[LoraLayer]:
    return [module for module in denoiser.modules() if isinstance(module, LoraLayer)]
