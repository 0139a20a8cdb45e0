"""CFG++ (2406.08070): x̂0 is guided, and the noise that goes back on it is that of the null prediction.

    x_u = α_u·x̂0 + σ_u·ε̂(∅),    x̂0 from ε̂(∅) + λ·(ε̂(c) − ε̂(∅)),    0 ≤ λ ≤ 1

A stock pipeline hands one ε̂ to its scheduler. A deterministic DDIM step t → u (2010.02502) of

    ε̂ = ε̂(∅) + ω·(ε̂(c) − ε̂(∅)),    ω = λ·α_u·σ_t / (α_u·σ_t − α_t·σ_u)

ends at the same x_u, so CFG++ is plain guidance of a scale that falls with the noise: λ at the last step, where nothing
goes back on. It is exact for DDIM and for nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfnpo_core.adapters.rules import GuidanceStep, Pair, Rule, plain
from selfnpo_core.errors import InputError
from selfnpo_core.guidance import guide

_EXACT = ("DDIMScheduler", "CogVideoXDDIMScheduler")


@dataclass(frozen=True, kw_only=True)
class NullRenoised:
    """share: λ. scheduler: the pipeline's. The call's own guidance scale is not used, it only turns guidance on."""

    share: float
    scheduler: Any
    rule: Rule = plain

    def __post_init__(self) -> None:
        kind, config = type(self.scheduler).__name__, self.scheduler.config
        if kind not in _EXACT or config.get("clip_sample") or config.get("thresholding"):
            raise InputError(f"CFG++ is exact for {' and '.join(_EXACT)} without clipping only, not for {kind}")

    def __call__(self, step: GuidanceStep) -> Pair:
        negative, positive = self.rule(step)
        guided = guide(negative, positive, self.share * self._raised(step))
        return guided, guided

    def _raised(self, step: GuidanceStep) -> float:
        """ω/λ, with the levels that the scheduler itself takes."""
        scheduler = self.scheduler
        t = int(scheduler.timesteps[step.index])
        u = t - scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps
        here = float(scheduler.alphas_cumprod[t])
        there = float(scheduler.alphas_cumprod[u] if u >= 0 else scheduler.final_alpha_cumprod)
        new, kept = (there * (1 - here)) ** 0.5, (here * (1 - there)) ** 0.5
        return new / (new - kept)
