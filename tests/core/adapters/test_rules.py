"""Rules of guidance against diffusers' guiders, on random predictions of every type; and what they come to alone."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor

from selfnpo_core import InputError
from selfnpo_core.adapters.rules import (
    GuidanceInterval,
    GuidanceStep,
    Perturbed,
    Projected,
    Rescaled,
    Rule,
    ZeroStar,
    plain,
)
from selfnpo_core.guidance import guide
from selfnpo_core.prediction import Estimate, from_estimate
from selfnpo_core.schedule import NoiseLevel

SHAPES = [(3, 4, 8, 8), (2, 3, 4, 6, 6)]
SCALE = 4.0


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(negative: Tensor, positive: Tensor, **given: Any) -> GuidanceStep:
    def level(value: float) -> Tensor:
        return torch.full((len(positive), *(1,) * (positive.ndim - 1)), value)

    defaults: dict[str, Any] = {
        "x_t": draw(*positive.shape, seed=9),
        "level": NoiseLevel(level(0.6), level(0.8)),
        "prediction_type": "flow",
        "scale": SCALE,
        "index": 1,
        "total": 10,
        "memory": {},
        "both": lambda: (negative, positive),
        "positive": lambda _: positive,
        "predict": lambda *_: pytest.fail("asked for by no rule here"),
    }
    return GuidanceStep(**{**defaults, **given})


def guided(rule: Rule, at: GuidanceStep) -> Tensor:
    """What the pipeline makes of it."""
    negative, positive = rule(at)
    return guide(negative, positive, SCALE)


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_star_is_that_of_diffusers(shape: tuple[int, ...]) -> None:
    negative, positive = draw(*shape, seed=1), draw(*shape, seed=2) + draw(*shape, seed=1)
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=SCALE, zero_init_steps=2)
    for index in range(4):
        guider.set_state(index, 10, torch.tensor(0))
        ours = guided(ZeroStar(first=2), step(negative, positive, index=index))
        assert torch.allclose(ours, guider.forward(positive, negative).pred, atol=1e-5)
        assert bool(ours.any()) == (index >= 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("eta", "norm", "momentum"), [(0.0, 0.0, 0.0), (0.4, 0.7, -0.5), (1.0, 0.0, 0.0)])
def test_apg_is_that_of_diffusers(shape: tuple[int, ...], eta: float, norm: float, momentum: float) -> None:
    """On a network that predicts x0, where both are of the same."""
    elements = draw(*shape)[0].numel()
    guider = AdaptiveProjectedGuidance(
        guidance_scale=SCALE - 1,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=norm * elements**0.5,
        eta=eta,
        use_original_formulation=True,
    )
    guider.set_state(0, 10, torch.tensor(0))
    rule, memory = Projected(eta=eta, norm=norm, momentum=momentum), dict[str, Any]()
    guider.momentum_buffer = MomentumBuffer(momentum)
    for index in range(3):
        negative, positive = draw(*shape, seed=3 * index), draw(*shape, seed=3 * index + 1)
        ours = guided(rule, step(negative, positive, prediction_type="sample", memory=memory, index=index))
        assert torch.allclose(ours, guider.forward(positive, negative).pred, atol=1e-5)
        if eta == 1 and momentum == norm == 0:
            assert torch.allclose(ours, guide(negative, positive, SCALE), atol=1e-5)


@pytest.mark.parametrize("rule", [ZeroStar(), Projected(eta=0.2, norm=0.3)], ids=["zero star", "apg"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_what_a_network_predicts_does_not_matter(rule: Rule, prediction_type: str) -> None:
    """The guided x̂0 and ε̂ are those of a flow model of the same opinion."""
    x_t, level = draw(3, 4, 8, 8, seed=9), step(draw(3, 4, 8, 8), draw(3, 4, 8, 8)).level
    opinions = []
    for seed in (1, 2):
        x0 = draw(3, 4, 8, 8, seed=seed)
        opinions.append(Estimate(x0, (x_t - level.alpha * x0) / level.sigma))
    negative, positive = (from_estimate(one, x_t, level, "flow") for one in opinions)
    at = step(*(from_estimate(one, x_t, level, prediction_type) for one in opinions), prediction_type=prediction_type)
    assert torch.allclose(at.change(guided(rule, at), "flow"), guided(rule, step(negative, positive)), atol=1e-4)


def test_rescaling_is_that_of_diffusers() -> None:
    negative, positive = draw(3, 4, 8, 8, seed=1), draw(3, 4, 8, 8, seed=2)
    at = step(negative, positive)
    theirs = rescale_noise_cfg(guide(negative, positive, SCALE), positive, 0.7)
    assert torch.equal(guided(Rescaled(share=0.7), at), theirs)
    full = guided(Rescaled(share=1.0), at)
    assert torch.allclose(full.std((1, 2, 3)), positive.std((1, 2, 3)))
    assert torch.allclose(guided(Rescaled(share=0.0), at), guide(negative, positive, SCALE))


@pytest.mark.parametrize(("low", "high", "inside"), [(1.0, 2.0, True), (1.34, 2.0, False), (0.0, 1.32, False)])
def test_an_interval_of_noise(low: float, high: float, inside: bool) -> None:
    negative, positive = draw(3, 4, 8, 8, seed=1), draw(3, 4, 8, 8, seed=2)  # σ/α is 4/3
    expected = guide(negative, positive, SCALE) if inside else positive
    assert torch.equal(guided(GuidanceInterval(low=low, high=high), step(negative, positive)), expected)


@pytest.mark.parametrize(("low", "high", "inside"), [(1.5, 2.0, False), (1.0, 1.5, True)])
def test_an_interval_holds_its_upper_end_and_not_its_lower(low: float, high: float, inside: bool) -> None:
    negative, positive = draw(3, 4, 8, 8, seed=1), draw(3, 4, 8, 8, seed=2)
    level = NoiseLevel(torch.full((3, 1, 1, 1), 0.5), torch.full((3, 1, 1, 1), 0.75))
    expected = guide(negative, positive, SCALE) if inside else positive
    assert torch.equal(guided(GuidanceInterval(low=low, high=high), step(negative, positive, level=level)), expected)


def test_infinite_noise_is_outside_of_every_interval() -> None:
    negative, positive = draw(3, 4, 8, 8, seed=1), draw(3, 4, 8, 8, seed=2)
    end = NoiseLevel(torch.zeros(3, 1, 1, 1), torch.ones(3, 1, 1, 1))
    assert torch.equal(guided(GuidanceInterval(low=0.0, high=1e9), step(negative, positive, level=end)), positive)


def test_away_from_a_weakened_network_at_some_steps() -> None:
    """n + g·(p − n) + s·(p − q), where start < step/steps < stop, ends not counted (SD3.5's reference code)."""
    negative, positive, weak = (draw(3, 4, 8, 8, seed=seed) for seed in (1, 2, 3))
    asked = []

    def q(weaken: Any) -> Tensor:
        asked.append(weaken)
        return weak

    rule = Perturbed(weaken=nullcontext, strength=2.8, start=0.1, stop=0.4)
    for index in range(10):
        expected = guide(negative, positive, SCALE)
        if index in (2, 3):
            expected = expected + 2.8 * (positive - weak)
        ours = guided(rule, replace(step(negative, positive, index=index), positive=q))
        assert torch.allclose(ours, expected, atol=1e-5)
    assert asked == [nullcontext] * 2


def test_rules_within_rules() -> None:
    negative, positive = draw(3, 4, 8, 8, seed=1), draw(3, 4, 8, 8, seed=2)
    at = step(negative, positive)
    both = Rescaled(rule=ZeroStar())
    scaled = ZeroStar()(at)
    assert torch.equal(guided(both, at), rescale_noise_cfg(guide(*scaled, SCALE), positive, 0.7))
    assert plain(at) == (negative, positive)


def test_another_output_than_input_is_refused() -> None:
    at = step(draw(3, 4, 8, 8), draw(3, 4, 8, 8), x_t=draw(3, 9, 8, 8), prediction_type="epsilon")
    with pytest.raises(InputError, match=r"not \(4, 8, 8\) from \(9, 8, 8\)"):
        Projected()(at)
    assert torch.isfinite(guided(Rescaled(), at)).all()  # needs no x_t
