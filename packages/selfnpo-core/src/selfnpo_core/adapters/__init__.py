"""Negative weights on stock diffusers pipelines: the call stays as it is, only the negative branch changes.

`NegativeAdapters` adds LoRAs to the negative rows of the batch, in one forward; `NegativeDelta` runs the negative rows
through other full weights, in a second forward.
"""

from selfnpo_core.adapters.delta import NegativeDelta
from selfnpo_core.adapters.rows import NegativeAdapters

__all__ = ["NegativeAdapters", "NegativeDelta"]
