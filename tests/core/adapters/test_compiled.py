"""Negative weights on a compiled UNet: attached before and after its first call, changed, and detached."""

from typing import Any

import pytest
import torch
from tests.core.adapters.reference import add_lora, assert_same, delta_of, lora_layers, model_with, two_model_loop
from tests.tiny import sample, sd15

from selfnpo_core import InputError, NegativeAdapters, NegativeDelta

pytestmark = pytest.mark.slow


def compiled(form: str) -> Any:
    """The LoRA is loaded, and inactive. One form is lowered to machine code (with g++), the other only traced."""
    torch._dynamo.reset()
    pipe = sd15()
    add_lora(pipe.unet, "npo", seed=1)
    pipe.unet.set_adapters([])
    if form == "wrapped":
        pipe.unet = torch.compile(pipe.unet)
    else:
        pipe.unet.compile(backend="eager")
    return pipe


@pytest.fixture(scope="module")
def expected() -> dict[float, torch.Tensor]:
    pipe = sd15()
    add_lora(pipe.unet, "npo", seed=1)
    models = {beta: model_with("sd15", pipe.unet, {"npo": beta}) for beta in (0.0, 0.5, 1.0)}
    return {beta: two_model_loop(sd15(), models[0.0], model) for beta, model in models.items()}


@pytest.mark.parametrize(
    ("form", "called_before"),
    [pytest.param("wrapped", True, marks=pytest.mark.exhaustive), ("in place", True), ("in place", False)],
)
def test_adapters(form: str, called_before: bool, expected: dict[float, torch.Tensor]) -> None:
    pipe = compiled(form)
    if called_before:
        assert_same(sample("sd15", pipe), expected[0.0])
    negative = NegativeAdapters.attach(pipe, {"npo": 1.0})
    assert_same(sample("sd15", pipe), expected[1.0])
    negative.set_strength({"npo": 0.5})
    assert_same(sample("sd15", pipe), expected[0.5])
    # Two rows again, but both positive.
    assert_same(sample("sd15", pipe, ["a", "b"], scale=1.0), sample("sd15", sd15(), ["a", "b"], scale=1.0))
    assert_same(sample("sd15", pipe), expected[0.5])
    for layer in lora_layers(pipe.unet):
        layer.set_adapter("npo")
    with pytest.raises(InputError, match="active, or fused, for all rows"):
        sample("sd15", pipe)
    for layer in lora_layers(pipe.unet):
        layer.set_adapter([])
    negative.detach()
    assert_same(sample("sd15", pipe), expected[0.0])


def test_full_weights(expected: dict[float, torch.Tensor]) -> None:
    pipe = compiled("in place")
    assert_same(sample("sd15", pipe), expected[0.0])
    with NegativeDelta.attach(pipe, delta_of(pipe.unet, "npo")) as negative:
        assert_same(sample("sd15", pipe), expected[1.0])
        negative.set_strength(0.5)
        assert_same(sample("sd15", pipe), expected[0.5])
    assert_same(sample("sd15", pipe), expected[0.0])
