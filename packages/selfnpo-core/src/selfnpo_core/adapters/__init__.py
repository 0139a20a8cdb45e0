"""Negative weights on stock diffusers pipelines: the call stays as it is, only the negative branch changes.

`NegativeAdapters` adds LoRAs to the negative rows of the batch, in one forward; `NegativeDelta` runs the negative rows
through other full weights, in a second forward; `NegativeLayers` does the same in one, layer by layer, from fewer bits;
`attach_npo` does one of them with what training wrote. `NPOGuidance` is for modular pipelines. `GuidanceRule` puts
another rule of guidance around them; rules that ask the negative weights themselves are in `negative_rules`.
"""

from selfnpo_core.adapters.attach import attach_npo
from selfnpo_core.adapters.guidance_rule import GuidanceRule
from selfnpo_core.adapters.negative_adapters import NegativeAdapters
from selfnpo_core.adapters.negative_delta import NegativeDelta
from selfnpo_core.adapters.negative_layers import NegativeLayers
from selfnpo_core.adapters.npo_guidance import NPOGuidance

__all__ = ["GuidanceRule", "NPOGuidance", "NegativeAdapters", "NegativeDelta", "NegativeLayers", "attach_npo"]
