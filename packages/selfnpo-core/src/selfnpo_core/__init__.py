"""Self-NPO: negative weights for diffusion guidance, from prompts only (2505.11777).

Names are imported when first used: the mathematics needs torch only, and what is built on diffusers and PEFT is
loaded when asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfnpo_core.adapters import (
        GuidanceRule,
        NegativeAdapters,
        NegativeDelta,
        NegativeLayers,
        NPOGuidance,
        attach_npo,
    )
    from selfnpo_core.denoise import add_noise, ddim_step, renoise
    from selfnpo_core.ema import ema_update
    from selfnpo_core.errors import InputError, RunError
    from selfnpo_core.guidance import NULL, Denoise, guide, guided_estimate
    from selfnpo_core.negative import compose, neon
    from selfnpo_core.objective import (
        denoising_loss,
        diffusion_dpo_loss,
        gradient_reversal_loss,
        npo_dpo_loss,
        tdft_loss,
    )
    from selfnpo_core.pool import TrajectoryPool
    from selfnpo_core.prediction import Estimate, from_estimate, to_estimate
    from selfnpo_core.rollout import full_simulation, trajectory, truncated
    from selfnpo_core.schedule import CLEAN, NoiseLevel, NoiseSchedule
    from selfnpo_core.weights.npo_rule import NpoRule

_MODULES = {
    "adapters": ("GuidanceRule", "NPOGuidance", "NegativeAdapters", "NegativeDelta", "NegativeLayers", "attach_npo"),
    "denoise": ("add_noise", "ddim_step", "renoise"),
    "ema": ("ema_update",),
    "errors": ("InputError", "RunError"),
    "guidance": ("NULL", "Denoise", "guide", "guided_estimate"),
    "negative": ("compose", "neon"),
    "objective": ("denoising_loss", "diffusion_dpo_loss", "gradient_reversal_loss", "npo_dpo_loss", "tdft_loss"),
    "pool": ("TrajectoryPool",),
    "prediction": ("Estimate", "from_estimate", "to_estimate"),
    "rollout": ("full_simulation", "trajectory", "truncated"),
    "schedule": ("CLEAN", "NoiseLevel", "NoiseSchedule"),
    "weights.npo_rule": ("NpoRule",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CLEAN",
    "NULL",
    "Denoise",
    "Estimate",
    "GuidanceRule",
    "InputError",
    "NPOGuidance",
    "NegativeAdapters",
    "NegativeDelta",
    "NegativeLayers",
    "NoiseLevel",
    "NoiseSchedule",
    "NpoRule",
    "RunError",
    "TrajectoryPool",
    "add_noise",
    "attach_npo",
    "compose",
    "ddim_step",
    "denoising_loss",
    "diffusion_dpo_loss",
    "ema_update",
    "from_estimate",
    "full_simulation",
    "gradient_reversal_loss",
    "guide",
    "guided_estimate",
    "neon",
    "npo_dpo_loss",
    "renoise",
    "tdft_loss",
    "to_estimate",
    "trajectory",
    "truncated",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
