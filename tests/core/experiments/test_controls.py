"""Controls of a negative: its parts make it whole again, each alone is what it is said to be."""

from typing import Any

import pytest
import torch
from tests.core.adapters.reference import assert_same, denoiser
from tests.core.adapters.test_negative_delta import offset
from tests.core.adapters.test_rules import SCALE, SHAPES, draw, guided, step
from tests.tiny import PIPELINES, sample
from torch import Tensor

from selfnpo_core import InputError, NegativeDelta
from selfnpo_core.adapters import GuidanceRule
from selfnpo_core.adapters.rules import GuidanceStep, Rows
from selfnpo_core.decomposition import contrast
from selfnpo_core.experiments.controls import (
    CONTRAST,
    REST,
    EqualScale,
    RandomDirection,
    Recombined,
    control_rule,
    take_apart,
)
from selfnpo_core.experiments.controls import (
    SCALE as OF_SCALE,
)
from selfnpo_core.experiments.measure import counted_rows
from selfnpo_core.guidance import guide

TYPES = ("epsilon", "v_prediction", "sample", "flow")


def taken(negative: Tensor, positive: Tensor, empty: Tensor, kind: str, **given: Any) -> GuidanceStep:
    """A step of a network that predicts `kind`, whose opinions of x0 are these."""
    at = step(negative, positive, prediction_type=kind)

    def said(x0: Tensor) -> Tensor:
        return at.change_back(x0, "sample")

    return step(
        said(negative),
        said(positive),
        prediction_type=kind,
        both=lambda: (said(negative), said(positive)),
        predict=lambda _: (said(empty),),
        **given,
    )


def empty_of(at: GuidanceStep) -> Tensor:
    """What the base predicts for the null prompt."""
    (prediction,) = at.predict(Rows("negative"))
    return prediction


def opinions(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    positive, empty = draw(*shape, seed=1), draw(*shape, seed=2)
    return empty + 0.3 * draw(*shape, seed=3) - 0.2 * contrast(empty) + 0.4 * (positive - empty), positive, empty


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", TYPES)
def test_all_parts_together_are_the_negative(shape: tuple[int, ...], kind: str) -> None:
    at = taken(*opinions(shape), kind)
    whole = Recombined(parts=(CONTRAST, OF_SCALE, REST))(at)
    for ours, own in zip(whole, at.both(), strict=True):
        assert_same(ours, own)
    for name in ("contrast", "scale", "rest", "without_contrast"):
        assert (control_rule(name)(at)[0] - at.both()[0]).abs().max() > 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_alone_is_a_negative_of_nothing_else(shape: tuple[int, ...]) -> None:
    """Another κ for every row."""
    _, positive, empty = opinions(shape)
    kappa = torch.linspace(-0.5, 0.2, shape[0]).view(-1, *(1,) * (len(shape) - 1))
    at = taken(empty + kappa * contrast(empty), positive, empty, "epsilon")
    assert_same(control_rule("contrast")(at)[0], at.both()[0])
    for name in ("scale", "rest", "without_contrast"):
        assert_same(control_rule(name)(at)[0], empty_of(at))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", TYPES)
def test_scale_alone_is_plain_guidance_of_the_equal_scale(shape: tuple[int, ...], kind: str) -> None:
    _, positive, empty = opinions(shape)
    at = taken(empty + 0.25 * (positive - empty), positive, empty, kind)
    equal = SCALE - (SCALE - 1) * 0.25
    plain = guide(empty_of(at), at.both()[1], equal)
    assert_same(guided(control_rule("scale"), at), plain, 1e-6)
    assert_same(guided(EqualScale(k=0.25), taken(empty, positive, empty, kind)), plain, 1e-6)
    assert_same(control_rule("contrast")(at)[0], empty_of(at), 1e-5)


def test_what_is_left_is_at_right_angles_to_both_knobs() -> None:
    negative, positive, empty = (x.double() for x in opinions((3, 4, 8, 8)))
    parts = take_apart(positive, empty, negative)
    torch.testing.assert_close(sum(parts.values()), negative - empty)
    for knob in (contrast(empty), positive - empty):
        assert (parts[REST] * knob).flatten(1).sum(1).abs().max() < 1e-9


def test_a_random_direction_changes_as_much_and_is_each_samples_own() -> None:
    shape = (3, 4, 8, 8)
    negative, positive, empty = opinions(shape)
    memory: dict[str, Any] = {}
    at = taken(negative, positive, empty, "epsilon", memory=memory)

    def change(prediction: Tensor) -> Tensor:
        return (prediction - empty_of(at)).flatten(1)

    first, second = (change(RandomDirection()(at)[0]) for _ in range(2))
    own = change(at.both()[0])
    for drawn in (first, second):
        torch.testing.assert_close(drawn.norm(dim=1), own.norm(dim=1))
        assert torch.cosine_similarity(drawn, own).abs().max() < 0.3
    assert torch.cosine_similarity(first, second).abs().max() < 0.3  # another at every step
    some = taken(negative[1:], positive[1:], empty[1:], "epsilon", x_t=at.x_t[1:])
    alone = (RandomDirection()(some)[0] - empty_of(some)).flatten(1)
    torch.testing.assert_close(alone, first[1:])
    other = change(RandomDirection(seed=1)(taken(negative, positive, empty, "epsilon"))[0])
    assert torch.cosine_similarity(other, first).abs().max() < 0.3


def test_what_is_not_finite_is_not_taken_apart() -> None:
    negative, positive, empty = opinions((2, 4, 8, 8))
    with pytest.raises(InputError, match="not finite"):
        take_apart(positive, empty / 0, negative)


@pytest.mark.parametrize("family", ["sd15", "cogvideox"])
def test_in_a_pipeline_the_null_branch_is_asked_with_and_without_the_weights(family: str) -> None:
    pipe = PIPELINES[family]()
    plain, delta = sample(family, pipe), offset(denoiser(pipe))
    with NegativeDelta.attach(pipe, delta):
        whole = sample(family, pipe)
        with counted_rows(denoiser(pipe)) as rows:
            every = Recombined(parts=(CONTRAST, OF_SCALE, REST))
            with GuidanceRule.attach(pipe, every):
                assert_same(sample(family, pipe), whole)
        assert rows == [9]
        with GuidanceRule.attach(pipe, Recombined(parts=())):
            assert_same(sample(family, pipe), plain)
    assert (whole - plain).abs().max() > 1e-3
    with GuidanceRule.attach(pipe, EqualScale(k=0.5)):
        assert_same(sample(family, pipe), sample(family, PIPELINES[family](), scale=3.0))
