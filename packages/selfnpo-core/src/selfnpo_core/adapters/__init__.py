"""Negative weights on stock diffusers pipelines: the call stays as it is, only the negative branch changes.

`NegativeAdapters` adds LoRAs to the negative rows of the batch, in one forward; `NegativeDelta` runs the negative rows
through other full weights, in a second forward; `NegativeLayers` does the same in one, layer by layer, from fewer bits;
`attach_npo` does one of them with what training wrote. `NPOGuidance` is for modular pipelines. `GuidanceRule` puts
another rule of guidance around them.
"""

from selfnpo_core.adapters.attach import attach_npo
from selfnpo_core.adapters.delta import NegativeDelta
from selfnpo_core.adapters.guider import NPOGuidance
from selfnpo_core.adapters.layers import NegativeLayers
from selfnpo_core.adapters.rows import NegativeAdapters
from selfnpo_core.adapters.rule import GuidanceRule

__all__ = ["GuidanceRule", "NPOGuidance", "NegativeAdapters", "NegativeDelta", "NegativeLayers", "attach_npo"]
