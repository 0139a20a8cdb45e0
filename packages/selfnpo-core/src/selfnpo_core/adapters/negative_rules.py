"""Rules of guidance that ask the negative weights themselves, rather than on the negative branch at one strength.

ε(c), ε(∅): the base under the prompt and under the null, or negative, prompt; ε₋: the negative weights.

    third term      ε(∅) + g·(ε(c) − ε(∅)) + w·(ε(c) − ε₋(c))       three rows a sample
    switch          ε(∅) + g·(ε(c) − ε(∅))      where σ/α > switch
                    ε₋(c) + g·(ε(c) − ε₋(c))    below it, autoguidance (2406.02507); two rows
    β by level      what the rule inside does, with β·share(σ/α) in the place of β

A pipeline with such a rule has negative weights under it: `NegativeAdapters`, `NegativeDelta` or `NegativeLayers`, with
condition "null", at their strength β. Neon (2510.03597) is no rule of this kind: it is `shares` of those classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfnpo_core.adapters.rules import GuidanceStep, Pair, Rows, Rule, plain
from selfnpo_core.guidance import Knots, check_knots, share_at


def without(step: GuidanceStep) -> Pair:
    """Classifier-free guidance (2207.12598) by the base, whatever negative weights are attached."""
    negative, positive = step.predict(Rows("negative"), Rows("positive"))
    return negative, positive


@dataclass(frozen=True, kw_only=True)
class ThirdTerm:
    """w·(ε(c) − ε₋(c)) is added to both predictions, and so to what `rule` guides to."""

    weight: float
    rule: Rule = without

    def __call__(self, step: GuidanceStep) -> Pair:
        negative, positive = self.rule(step)
        (weak,) = step.predict(Rows("positive", 1.0))
        away = self.weight * (positive - weak)
        return negative + away, positive + away


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Away from the base under the null prompt where σ/α > switch, from the negative weights under the prompt below."""

    switch: float

    def __call__(self, step: GuidanceStep) -> Pair:
        if step.noise_to_signal > self.switch:
            return without(step)
        weak, positive = step.predict(Rows("positive", 1.0), Rows("positive"))
        return weak, positive


@dataclass(frozen=True, kw_only=True)
class BetaByLevel:
    """`rule` with negative weights of strength β·share(σ/α), β being the strength that they are attached with.

    The share is linear in log σ/α between knots (σ/α, share), and constant outside of them. Two knots at one σ/α are a
    jump: weights that act where low < σ/α ≤ high are `selfnpo_core.guidance.interval(low, high)`.
    """

    knots: Knots
    rule: Rule = plain

    def __post_init__(self) -> None:
        check_knots(self.knots)

    def __call__(self, step: GuidanceStep) -> Pair:
        return self.rule(step.with_share(share_at(self.knots, step.noise_to_signal)))
