"""Negative weights as a guider of diffusers' modular pipelines, whose branches are forwards of their own.

pipe.load_lora_weights("runs/sdxl/npo", adapter_name="npo")
pipe.update_components(guider=NPOGuidance.from_npo("runs/sdxl"))             as they recommend
pipe.update_components(guider=NPOGuidance({"npo": 1.0}, guidance_scale=5.0))  or as given
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ClassifierFreeGuidance
from diffusers.configuration_utils import register_to_config
from peft.tuners.lora import LoraLayer

from selfnpo_core.adapters.branches import Condition
from selfnpo_core.adapters.hooks import strength
from selfnpo_core.adapters.negative_adapters import trained_scale
from selfnpo_core.errors import InputError
from selfnpo_core.system import private

if TYPE_CHECKING:
    from selfnpo_core.weights.npo_rule import NpoRule


class NPOGuidance(ClassifierFreeGuidance):  # type: ignore[misc]
    """Classifier-free guidance (2207.12598) whose unconditional forward has other LoRA weights (Self-NPO, 2505.11777).

    weights: adapter, already loaded → what the negative branch gets of it in addition to what both get, as for
        `NegativeAdapters.attach`: {"npo": β}, or {"npo": β, "eta": α − 1} with shared=("eta",).
    shared: those of the adapters that are active on both branches; the others act on the negative one only, whether or
        not loading them left them active.
    guidance_scale and the rest are `ClassifierFreeGuidance`'s. Between forwards the model is as it was.

    The rule is two_branch of `NpoRule`, under the null, or negative, prompt; `from_npo` refuses weights that want
    another.

    Raises `InputError` for an adapter that is not loaded, and at a forward of another number of branches than two.
    """

    @register_to_config
    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        shared: tuple[str, ...] = (),
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ):
        super().__init__(guidance_scale, guidance_rescale, use_original_formulation, start, stop, enabled)
        # the base class's own decorator has registered its arguments only
        self.register_to_config(weights=dict(weights or {}), shared=list(shared))
        self._weights = {name: strength(w, f"the weight of '{name}'") for name, w in (weights or {}).items()}
        self._shared = frozenset(shared)
        if unknown := self._shared - set(self._weights):
            raise InputError(f"shared adapter '{min(unknown)}' has no weight: name it among the weights")
        self._before: list[tuple[LoraLayer, Any, dict[str, float]]] = []

    @classmethod
    def from_npo(
        cls,
        path: str | Path,
        *,
        adapter: str = "npo",
        beta: float | None = None,
        rule: NpoRule | None = None,
        condition: Condition | None = None,
        **guidance: Any,
    ) -> NPOGuidance:
        """Guidance as negative weights recommend it, whose LoRA the pipeline has, or will have, as `adapter`.

        path: a run folder, its npo folder, or the weights file. beta, rule, condition: None is what they recommend.
        guidance: arguments of the class but `weights` and `shared`; guidance_scale is the middle of the range that they
            recommend.
        Raises `InputError` for what `load_npo` refuses, for an offset of all weights, and for another rule or condition
        than this class has. The base that they were made for is not compared with the pipeline's.
        """
        from selfnpo_core.weights.npo_folder import Recommended, load_npo

        npo = load_npo(path)
        advice = npo.config.recommended if npo.config else Recommended()
        instead = "attach_npo() on the stock pipeline does"
        if npo.kind == "delta":
            raise InputError(f"{npo.path} is an offset of all weights, which NPOGuidance does not put in: {instead}")
        given, rule = rule, advice.rule if rule is None else rule
        if rule.name != "two_branch" or rule.beta_knots:
            whose = f"{npo.path} recommends" if given is None else "asked for is"
            raise InputError(
                f"{whose} rule {rule}, and NPOGuidance knows two_branch without beta_knots only: {instead} the others, "
                "or give rule=NpoRule()"
            )
        if rule.condition(condition, npo.config.negative_condition if npo.config else "null") != "null":
            raise InputError(
                f"{npo.path} is to be asked under the prompt, and NPOGuidance asks under the null prompt only: "
                f"{instead} so, or give condition='null'"
            )
        if npo.config is not None:
            guidance = {"guidance_scale": sum(advice.guidance_scale) / 2, **guidance}
        return cls({adapter: advice.beta if beta is None else beta}, **guidance)

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Before a branch's forward: the negative weights are off for the first, on for the second."""
        super().prepare_models(denoiser)
        negative = private.prepared_branches(self) == 2
        layers = [module for module in denoiser.modules() if isinstance(module, LoraLayer)]
        loaded = {name for layer in layers for name in layer.lora_A}
        for name in self._weights:
            if name not in loaded:
                has = ", ".join(sorted(loaded)) or "none at all"
                raise InputError(f"the denoiser has no LoRA named '{name}', but {has}: load_lora_weights() first")
        for layer in layers:
            names = [name for name in self._weights if name in layer.lora_A]
            if not names:
                continue
            self._before.append((layer, private.active_adapter(layer), dict(layer.scaling)))
            active = [name for name in layer.active_adapters if name not in names or name in self._shared]
            for name in names if negative else ():
                if name in active:
                    layer.scaling[name] *= 1 + self._weights[name]
                else:
                    layer.scaling[name] = trained_scale(layer, name) * self._weights[name]
                    active.append(name)
            private.set_active_adapter(layer, active)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """After a branch's forward."""
        for layer, active, scaling in self._before:
            private.set_active_adapter(layer, active)
            layer.scaling.update(scaling)
        self._before = []
        super().cleanup_models(denoiser)
