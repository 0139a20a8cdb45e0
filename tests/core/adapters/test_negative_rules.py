"""Rules that ask the negative weights, against combinations by hand of what separate whole models say."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import pytest
import torch
from tests.core.adapters.reference import Ask, TwoModels, add_lora, assert_same, by_hand, delta_of, denoiser
from tests.core.adapters.test_negative_delta import offset, shifted
from tests.tiny import PIPELINES, sample, sd15
from torch import Tensor

from selfnpo_core import GuidanceRule, InputError, NegativeAdapters, NegativeDelta, NegativeLayers
from selfnpo_core.adapters.negative_rules import BetaByLevel, Switch, ThirdTerm
from selfnpo_core.adapters.rules import GuidanceInterval, Perturbed, Rule
from selfnpo_core.adapters.weakening import identity_attention
from selfnpo_core.experiments.measure import counted_rows
from selfnpo_core.guidance import interval

PROMPTS = ["a red fox", "two blue birds"]
SCALE, BETA, WEIGHT = 5.0, 0.6, 0.7
Guided = Callable[[Ask, float], Tensor]
At = Callable[[float], torch.nn.Module]
"""β → a whole model θ + β·δ."""


@cache
def levels(family: str) -> list[float]:
    """σ/α of the three steps of `sample`, falling."""
    seen: list[float] = []

    def guided(ask: Ask, level: float) -> Tensor:
        seen.append(level)
        return ask(model, "positive")

    model = denoiser(PIPELINES[family]())
    by_hand(family, guided, ["a"])
    return seen


def cfg(negative: Tensor, positive: Tensor) -> Tensor:
    return negative + SCALE * (positive - negative)


def third(at: At, _steps: list[float]) -> tuple[Rule, Guided]:
    def guided(ask: Ask, _level: float) -> Tensor:
        n, p, q = ask(at(0), "negative"), ask(at(0), "positive"), ask(at(BETA), "positive")
        return cfg(n, p) + WEIGHT * (p - q)

    return ThirdTerm(weight=WEIGHT), guided


def switch(at: At, steps: list[float]) -> tuple[Rule, Guided]:
    """At the second step it is switched."""
    where = 1.01 * steps[1]

    def guided(ask: Ask, level: float) -> Tensor:
        p = ask(at(0), "positive")
        return cfg(ask(at(0), "negative"), p) if level > where else cfg(ask(at(BETA), "positive"), p)

    return Switch(switch=where), guided


def by_level(at: At, steps: list[float]) -> tuple[Rule, Guided]:
    """A share of 1 at the first step, where the level may be infinite, and between knots at the others."""
    knots = ((steps[2] / 2, 0.2), (steps[1] * 2, 1.0))

    def guided(ask: Ask, level: float) -> Tensor:
        slope = 0.8 / (math.log(steps[1] * 2) - math.log(steps[2] / 2))
        share = 1.0 if level >= steps[1] * 2 else 0.2 + slope * (math.log(level) - math.log(steps[2] / 2))
        return cfg(ask(at(share * BETA), "negative"), ask(at(0), "positive"))

    return BetaByLevel(knots=knots), guided


def third_in_an_interval(at: At, steps: list[float]) -> tuple[Rule, Guided]:
    """The third term at the second step only."""

    def guided(ask: Ask, level: float) -> Tensor:
        n, p, q = ask(at(0), "negative"), ask(at(0), "positive"), ask(at(BETA), "positive")
        return cfg(n, p) + (WEIGHT * (p - q) if 1.01 * steps[2] < level <= 1.01 * steps[1] else 0)

    inside = interval(1.01 * steps[2], 1.01 * steps[1])
    return BetaByLevel(knots=inside, rule=ThirdTerm(weight=WEIGHT)), guided


RULES = [third, switch, by_level, third_in_an_interval]


def ways(pipe: Any, delta: dict[str, Tensor], kind: str) -> Callable[..., AbstractContextManager[object]]:
    """How the weights are attached at strength β."""
    if kind == "lora":
        return lambda **how: NegativeAdapters.attach(pipe, {"npo": BETA}, **how)
    if kind == "layers":
        return lambda **how: NegativeLayers.attach(pipe, delta, beta=BETA, store="exact", **how)
    return lambda **how: NegativeDelta.attach(pipe, delta, beta=BETA, **how)


def weighted(family: str, kind: str) -> tuple[Any, dict[str, Tensor], At]:
    """(pipeline, its offset, θ + β·δ)."""
    pipe = PIPELINES[family]()
    if kind == "lora":
        add_lora(denoiser(pipe), "npo", seed=1)
        delta = delta_of(denoiser(pipe), "npo")
    else:
        delta = offset(denoiser(pipe))
    return pipe, delta, cache(lambda beta: shifted(family, delta, beta))


@pytest.mark.parametrize(
    ("family", "kind"),
    [("sd15", "lora"), ("sd15", "full"), ("sd15", "layers"), ("cogvideox", "lora"), ("sdxl", "lora")],
)
@pytest.mark.parametrize("made", RULES)
def test_a_rule_is_the_combination_by_hand(made: Any, family: str, kind: str) -> None:
    pipe, delta, at = weighted(family, kind)
    rule, guided = made(at, levels(family))
    expected = by_hand(family, guided, PROMPTS)
    with ways(pipe, delta, kind)():
        two_branches = sample(family, pipe, PROMPTS)
        with GuidanceRule.attach(pipe, rule):
            ours = sample(family, pipe, PROMPTS)
            assert torch.equal(sample(family, pipe, PROMPTS), ours)
        assert torch.equal(sample(family, pipe, PROMPTS), two_branches)
    assert_same(ours, expected, 2e-5)
    assert (ours - two_branches).abs().max() > 1e-3


@pytest.mark.parametrize("made", [third, switch])
def test_full_weights_of_a_video_model(made: Any) -> None:
    pipe, delta, at = weighted("cogvideox", "full")
    rule, guided = made(at, levels("cogvideox"))
    expected = by_hand("cogvideox", guided, PROMPTS)
    with NegativeDelta.attach(pipe, delta, beta=BETA), GuidanceRule.attach(pipe, rule):
        assert_same(sample("cogvideox", pipe, PROMPTS), expected, 2e-5)


@pytest.mark.parametrize("family", ["sd15", "cogvideox"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_rows_that_are_run(family: str, kind: str) -> None:
    pipe, delta, at = weighted(family, kind)
    counts = {"third": 18, "switch": 12, "by_level": 12}
    for made in RULES[:3]:
        rule, _ = made(at, levels(family))
        with counted_rows(denoiser(pipe)) as rows, ways(pipe, delta, kind)(), GuidanceRule.attach(pipe, rule):
            sample(family, pipe, PROMPTS)
            assert rows == [counts[made.__name__]]
            sample(family, pipe, PROMPTS, scale=1.0)  # guidance off
            assert rows == [counts[made.__name__] + 6]
    for scale, expected in ((SCALE, 12), (1.0, 6)):
        with counted_rows(denoiser(pipe)) as rows, ways(pipe, delta, kind)(shares=(-1.0, -1.0)):
            sample(family, pipe, PROMPTS, scale=scale)
        assert rows == [expected]


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "cogvideox", "wan", "flux"])
def test_neon_on_both_branches_and_without_guidance(family: str, kind: str) -> None:
    """θ − w·δ wherever the model is asked; with guidance off too (2510.03597)."""
    pipe, delta, at = weighted(family, kind)
    plain = sample(family, pipe, PROMPTS) if kind == "full" else None
    away = at(-WEIGHT * BETA)
    for scale in (SCALE, 1.0):
        other = PIPELINES[family]()
        setattr(other, "unet" if "unet" in other.components else "transformer", away)
        with ways(pipe, delta, kind)(shares=(-WEIGHT, -WEIGHT)):
            assert_same(sample(family, pipe, PROMPTS, scale), sample(family, other, PROMPTS, scale), 2e-5)
    assert plain is None or torch.equal(sample(family, pipe, PROMPTS), plain)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(("family", "order"), [("sd15", "negative first"), ("wan", "separate")])
def test_neon_on_the_positive_branch_and_the_weights_on_the_other(family: str, order: str, kind: str) -> None:
    pipe, delta, at = weighted(family, kind)
    other = PIPELINES[family]()
    two = TwoModels(at(-WEIGHT * BETA), at(BETA), order)
    setattr(other, "unet" if "unet" in other.components else "transformer", two)
    expected = sample(family, other, PROMPTS)
    with ways(pipe, delta, kind)(shares=(1.0, -WEIGHT)):
        assert_same(sample(family, pipe, PROMPTS), expected, 2e-5)


def test_rules_of_others_see_the_positive_branch_of_neon() -> None:
    """The third forward of perturbed attention is of θ − w·δ too."""
    pipe, delta, at = weighted("sd15", "full")
    other = sd15()
    other.unet = at(-WEIGHT * BETA)
    rule = Perturbed(weaken=identity_attention(["mid_block.attentions.0.transformer_blocks.0.attn1"]), strength=2.0)
    with GuidanceRule.attach(other, rule):
        expected = sample("sd15", other, PROMPTS)
    for kind in ("full", "layers"):
        with ways(pipe, delta, kind)(shares=(-WEIGHT, -WEIGHT)), GuidanceRule.attach(pipe, rule):
            assert_same(sample("sd15", pipe, PROMPTS), expected, 2e-5)


def test_a_rule_within_another() -> None:
    """The third term in an interval of guidance: p outside of it."""
    pipe, delta, at = weighted("sd15", "full")
    steps = levels("sd15")
    low, high = 1.01 * steps[2], 1.01 * steps[1]

    def guided(ask: Ask, level: float) -> Tensor:
        p = ask(at(0), "positive")
        if not low < level <= high:
            return p
        return cfg(ask(at(0), "negative"), p) + WEIGHT * (p - ask(at(BETA), "positive"))

    rule = GuidanceInterval(low=low, high=high, rule=ThirdTerm(weight=WEIGHT))
    with NegativeDelta.attach(pipe, delta, beta=BETA), GuidanceRule.attach(pipe, rule):
        assert_same(sample("sd15", pipe, PROMPTS), by_hand("sd15", guided, PROMPTS), 2e-5)


def test_the_strength_by_level_of_the_own_prompt() -> None:
    pipe, delta, at = weighted("sd15", "full")
    steps = levels("sd15")

    def guided(ask: Ask, level: float) -> Tensor:
        return cfg(ask(at(BETA if level <= 1.01 * steps[1] else 0), "positive"), ask(at(0), "positive"))

    rule = BetaByLevel(knots=interval(steps[2] / 2, 1.01 * steps[1]))
    with NegativeDelta.attach(pipe, delta, beta=BETA, condition="prompt"), GuidanceRule.attach(pipe, rule):
        assert_same(sample("sd15", pipe, PROMPTS), by_hand("sd15", guided, PROMPTS), 2e-5)


def test_what_cannot_be_done_is_refused() -> None:
    pipe = sd15()
    with GuidanceRule.attach(pipe, ThirdTerm(weight=1.0)), pytest.raises(InputError, match="attach them before"):
        sample("sd15", pipe)
    with pytest.raises(InputError, match="must not fall"):
        BetaByLevel(knots=((2.0, 1.0), (1.0, 0.0)))
    with pytest.raises(InputError, match="a share of the negative weights is nan"):
        NegativeDelta.attach(pipe, offset(pipe.unet), shares=(math.nan, 0.0))
    assert torch.equal(sample("sd15", pipe), sample("sd15", sd15()))
