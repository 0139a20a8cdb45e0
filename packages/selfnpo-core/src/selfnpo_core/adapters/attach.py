"""From a run on disk to a pipeline's negative branch in one call, with everything checked that can be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from selfnpo_core.adapters.branches import Condition, find_denoisers
from selfnpo_core.adapters.guidance_rule import check_takes_rules
from selfnpo_core.adapters.hooks import bare, strength
from selfnpo_core.adapters.negative_adapters import NegativeAdapters
from selfnpo_core.adapters.negative_delta import NegativeDelta
from selfnpo_core.adapters.negative_layers import NegativeLayers, Store
from selfnpo_core.adapters.ruled_negative import Negative, RuledNegative, rule_around, strengths
from selfnpo_core.errors import InputError
from selfnpo_core.system import private
from selfnpo_core.weights.lora_file import LoraFile, read_lora
from selfnpo_core.weights.lora_layers import Lora, loaded_into, put_into, say_what_is_used, text_layers

if TYPE_CHECKING:
    from selfnpo_core.models.backbone import NegativeWeights
    from selfnpo_core.weights.npo_folder import Npo
    from selfnpo_core.weights.npo_rule import NpoRule

log = logging.getLogger(__name__)
NPO, ETA = "npo", "eta"
Mode = Literal["auto", "adapters", "swap", "bf16", "int8", "lowrank"]
"""How the negative rows get their weights:

    adapters   the LoRA itself, in one forward (`NegativeAdapters`)
    swap       a second copy of the weights, in a forward of its own (`NegativeDelta`)
    bf16 int8  differences of 16 or 8 bits, layer by layer, in one forward (`NegativeLayers`)
    lowrank    the same with the nearest product of a rank in the place of each difference, as an adapter
    auto       adapters for a LoRA, else swap
"""


def attach_npo(
    pipe: Any,
    path: str | Path,
    *,
    alpha: float = 1.0,
    beta: float | None = None,
    condition: Condition | None = None,
    rule: NpoRule | None = None,
    other_base: bool = False,
    eta: Mapping[str, Tensor] | None = None,
    mode: Mode = "auto",
    rank: int = 32,
) -> Negative | RuledNegative:
    """Load negative weights δ and put them on the pipeline's negative branch, θ + α·η + β·δ, or where a rule has them.

    path: a run folder, its npo folder, or the weights file.
    alpha: of the preference-tuned η that the pipeline has on both branches: a LoRA loaded as adapter "eta", or `eta`.
    beta, condition: as `NegativeAdapters.attach`; None is what the weights recommend.
    rule: by which rule of guidance they are used (`NpoRule`); None is what the weights recommend. Rules third and
        switch, and β by noise level, are for pipelines that run both branches as one batch.
    other_base: also where θ is not the base that δ was trained on, as where η is merged into it.
    eta: η as differences of whole weights (parameter → η), already in the pipeline's denoiser.
    mode, rank: see `Mode`; rank is of "lowrank".

    A LoRA, in any of the namings that `read_lora` knows, is loaded as adapter "npo"; `detach()` unloads it again. What
    its file holds beside layers of the denoiser is left out, with a warning. Raises `InputError` for weights of another
    base or without effect, and for all that the three classes refuse; the pipeline is then as it was.
    """
    from selfnpo_core.weights.npo_folder import Recommended, check_base, load_npo

    npo = load_npo(path)
    advice = npo.config.recommended if npo.config else Recommended()
    rule = advice.rule if rule is None else rule
    asked = rule.condition(condition, npo.config.negative_condition if npo.config else "null")
    beta, alpha = strength(advice.beta if beta is None else beta, "beta"), strength(alpha, "alpha")
    rule.check_alpha(alpha)
    denoisers, around = find_denoisers(pipe, asked), rule_around(rule)
    if around is not None:
        check_takes_rules(pipe)
    if not other_base:
        denoiser = next(iter(denoisers.values()))
        if any(parameter.is_meta for parameter in denoiser.parameters()):
            raise InputError("weights offloaded layer by layer cannot be read: attach before enabling the offload")
        check_base(npo, denoiser, getattr(pipe, "name_or_path", "") or type(pipe).__name__)
    beta, shares = strengths(rule, beta)
    whole_eta = eta is not None and alpha != 1.0
    if alpha != 1.0 and eta is None:
        _check_eta(denoisers)
    if mode == "auto":
        mode = "adapters" if npo.kind == "lora" and not whole_eta else "swap"
    if mode == "adapters":
        if npo.kind == "delta" or whole_eta:
            what = "alpha of a preference in whole weights" if npo.kind == "lora" else "an offset of all weights"
            raise InputError(f"mode adapters is for LoRAs, this is {what}: use swap, bf16, int8 or lowrank")
        weights, shared = ({NPO: beta}, ()) if alpha == 1.0 else ({NPO: beta, ETA: alpha - 1.0}, (ETA,))
        with ExitStack() as undo:
            _load_inactive(pipe, npo, denoisers, undo)
            loaded = NegativeAdapters.attach(pipe, weights, condition=asked, shared=shared, shares=shares)
            loaded.at_detach(undo.pop_all().close)
        negative: Negative = loaded
    else:
        offset, times = _offset(npo, denoisers, alpha, beta, eta)
        how: dict[str, Any] = {"beta": times, "condition": asked, "shares": shares}
        if mode == "swap":
            negative = NegativeDelta.attach(pipe, offset, **how)
        else:
            store: Store | int = rank if mode == "lowrank" else mode
            negative = kept = NegativeLayers.attach(pipe, offset, **how, store=store)
            log.info("negative weights kept as %s: %.1f MB, off by %.2g %%", mode, kept.nbytes / 1e6, 100 * kept.error)
    return negative if around is None else RuledNegative.attach(pipe, negative, around)


def attach_weights(pipe: Any, negative: NegativeWeights, beta: float = 1.0) -> AbstractContextManager[object]:
    """Weights in training on the negative branch, for the duration of a `with` block."""
    if negative is None:
        return nullcontext()
    if isinstance(negative, str):
        return NegativeAdapters.attach(pipe, {negative: beta})
    return NegativeDelta.attach(pipe, negative, beta=beta)


def _offset(
    npo: Npo, denoisers: Mapping[str, nn.Module], alpha: float, beta: float, eta: Mapping[str, Tensor] | None
) -> tuple[Mapping[str, Tensor], float]:
    """(offset, its strength) of the negative rows from θ + η: δ and β, or (α − 1)·η + β·δ and 1."""
    from selfnpo_core.weights.offsets import offset_of

    delta = npo.tensors
    if npo.lora is not None:
        say_what_is_used(npo.lora)
        delta = offset_of(npo, next(iter(denoisers.values())))
    if alpha == 1.0:
        return delta, beta
    if eta is None:
        eta = {
            f"{name.replace('.base_layer', '')}.weight": layer.get_delta_weight(ETA)
            for denoiser in denoisers.values()
            for name, layer in denoiser.named_modules()
            if isinstance(layer, LoraLayer) and ETA in layer.lora_A
        }
    total = {name: beta * tensor.float() for name, tensor in delta.items()}
    for name, tensor in eta.items():
        part = (alpha - 1.0) * tensor.detach().float()
        total[name] = total[name].to(part.device) + part if name in total else part
    return total, 1.0


def _check_eta(denoisers: Mapping[str, nn.Module]) -> None:
    if not any(ETA in layer.active_adapters for denoiser in denoisers.values() for layer in _lora_layers(denoiser)):
        raise InputError(
            f"alpha is the strength of a LoRA named '{ETA}', and none is active: load_lora_weights(…, "
            f"adapter_name='{ETA}') first, or leave alpha at 1"
        )


def _load_inactive(pipe: Any, npo: Npo, denoisers: Mapping[str, nn.Module], undo: ExitStack) -> None:
    """Load a LoRA as adapter "npo". Loading makes it active in place of all others: have those active that were."""
    assert npo.lora is not None
    if any(NPO in getattr(denoiser, "peft_config", {}) for denoiser in denoisers.values()):
        raise InputError(f"the pipeline has an adapter '{NPO}' already: pipe.delete_adapters('{NPO}') first")
    active = {layer: layer.active_adapters for denoiser in denoisers.values() for layer in _lora_layers(denoiser)}
    undo.callback(_unload, pipe)
    try:
        denoiser, layers = _found(pipe, npo.lora)
        put_into(denoiser, layers, NPO, pipe)
        say_what_is_used(npo.lora)
    finally:
        for denoiser in denoisers.values():
            for layer in _lora_layers(denoiser):
                private.set_active_adapter(layer, active.get(layer, []))


def load_lora(pipe: Any, file: Path, adapter: str) -> frozenset[str]:
    """A LoRA file as an adapter that is active for all rows: its layers of the denoiser and of CLIP's text encoders.

    What else it holds is left out, with a warning. Returns the names of those text encoders. Raises `InputError` for
    what is no plain LoRA, for one of another model, and for one without effect; the pipeline may then have some of it.
    """
    lora = read_lora(file)
    denoiser, layers = _found(pipe, lora)
    if not lora.has_effect:
        raise InputError(f"{file} has no effect: its layers' products are zero, so give another")
    text = text_layers(lora, pipe)
    put_into(denoiser, layers, adapter, pipe)
    for part, own in text.items():
        put_into(getattr(pipe, part), own, adapter, pipe)
    say_what_is_used(lora, frozenset(text))
    return frozenset(text)


def _found(pipe: Any, lora: LoraFile) -> tuple[nn.Module, Lora]:
    """The denoiser, and its layers of the file."""
    denoiser: nn.Module = bare(getattr(pipe, "unet", None) or pipe.transformer)
    layers = loaded_into(pipe, denoiser, lora)
    if not all(bool(f.up.isfinite().all() and f.down.isfinite().all()) for f in layers.values()):
        raise InputError(f"{lora.path} holds NaN or infinite numbers: get it again")
    config = getattr(getattr(pipe, "scheduler", None), "config", {})
    predicts = config.get("prediction_type")
    if lora.prediction_type and predicts in ("epsilon", "v_prediction") and predicts != lora.prediction_type:
        raise InputError(
            f"{lora.path} was trained on a model that predicts '{lora.prediction_type}' by its header, and this one "
            f"predicts '{predicts}': load the base it was made for"
        )
    return denoiser, layers


def _unload(pipe: Any) -> None:
    """Without "npo", as before it was loaded. Where no other adapter is, the layers are plain again.

    A load that fails half-way leaves layers behind with nothing in them.
    """
    for component in pipe.components.values():
        if not isinstance(component, nn.Module) or not _lora_layers(component):
            continue
        loaded = getattr(component, "peft_config", {})
        unload: Any = getattr(component, "unload_lora", None)
        if unload is not None and not set(loaded) - {NPO}:
            unload()
        elif NPO in loaded:  # diffusers' models and transformers' have a word each
            delete: Any = getattr(component, "delete_adapters", None) or component.delete_adapter
            delete(NPO)


def _lora_layers(denoiser: nn.Module) -> list[LoraLayer]:
    return [module for module in denoiser.modules() if isinstance(module, LoraLayer)]
