"""Negative weights on stock diffusers pipelines: the call stays as it is, only the negative branch changes.

`NegativeAdapters` adds LoRAs to the negative rows of the batch, in one forward; `NegativeDelta` runs the negative rows
through other full weights, in a second forward; `attach_npo` does the one or the other with what training wrote.
"""

from selfnpo_core.adapters.attach import attach_npo
from selfnpo_core.adapters.delta import NegativeDelta
from selfnpo_core.adapters.rows import NegativeAdapters

__all__ = ["NegativeAdapters", "NegativeDelta", "attach_npo"]
