"""Small offsets on weights of 16 bits: θ + β·δ, rounded to θ's grid, would lose them."""

import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from tests.core.adapters.reference import denoiser
from tests.core.adapters.test_negative_delta import assert_unchanged, offset, snapshot
from tests.tiny import PIPELINES, sample, sd15
from torch import Tensor

from selfnpo_core import NegativeDelta
from selfnpo_core.adapters import NegativeLayers
from selfnpo_core.adapters.layer_weights import is_linear_in_weights, run_with
from selfnpo_core.negative import Factors, compose, nearest, relative_drift

ROWS, DRIFT = 16, 0.002
Attach = Callable[..., AbstractContextManager[Any]]
WAYS: dict[str, Attach] = {
    "swap": NegativeDelta.attach,
    "bf16": lambda pipe, delta: NegativeLayers.attach(pipe, delta, store="bf16"),
    "int8": lambda pipe, delta: NegativeLayers.attach(pipe, delta, store="int8"),
    "full rank": lambda pipe, delta: NegativeLayers.attach(pipe, delta, store=999),
}


@torch.no_grad()
def change(pipe: Any, attach: Attach, delta: dict[str, Tensor]) -> Tensor:
    """Δε: negative and positive rows of one forward have the same inputs."""
    x = torch.randn((ROWS, 4, 8, 8), generator=torch.Generator().manual_seed(0)).to(pipe.unet.dtype)
    with attach(pipe, delta):
        embeds, _ = pipe.encode_prompt(["a red fox"] * ROWS, "cpu", 1, True)
        out = pipe.unet(torch.cat([x, x]), 500, torch.cat([embeds, embeds])).sample.float()
    return out[:ROWS] - out[ROWS:]


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def halves(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Tensor], Tensor]:
    """A pipeline of 16 bits, a small offset, and what it changes in float32."""
    half = sd15().to(request.param)
    wide = copy.deepcopy(half).to(torch.float32)
    base, whole = dict(wide.unet.named_parameters()), offset(wide.unet)
    delta = {name: DRIFT / relative_drift(whole, base) * tensor for name, tensor in whole.items()}
    return half, delta, change(wide, NegativeDelta.attach, delta)


@pytest.mark.parametrize("way", WAYS)
def test_the_effect_is_kept(way: str, halves: tuple[Any, dict[str, Tensor], Tensor]) -> None:
    """Activations are rounded in any case, at random: so that the share of the effect that is there is near 1."""
    half, delta, truth = halves
    before = snapshot(half.unet)
    found = change(half, WAYS[way], delta)
    kept = float((found * truth).sum() / truth.square().sum())
    assert kept == pytest.approx(1, abs=0.03 if half.unet.dtype == torch.float16 else 0.2)
    assert_unchanged(half.unet, before)
    rounded = compose(dict(half.unet.named_parameters()), delta=delta)
    exact = compose({name: p.float() for name, p in half.unet.named_parameters()}, delta=delta)
    lost = {name: exact[name] - tensor.float() for name, tensor in rounded.items()}
    assert relative_drift(lost, delta) > (0.05 if half.unet.dtype == torch.float16 else 0.4), "the case is no case"


def test_what_rounding_takes_is_kept_apart_only_where_it_is_much(
    halves: tuple[Any, dict[str, Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    half, delta, _ = halves
    for times, apart in ((1.0, True), (200.0, False)):
        with NegativeDelta.attach(half, {name: times * tensor for name, tensor in delta.items()}) as negative:
            assert negative.error < 1e-6
            sample("sd15", half)
            assert bool(negative._made and negative._made.rest) == apart
    assert not caplog.records


def test_a_compiled_denoiser_says_what_it_loses(caplog: pytest.LogCaptureFixture) -> None:
    """A graph does not see what is added to a layer."""
    pipe = sd15().to(torch.bfloat16)
    pipe.unet.compile()
    delta = {name: 0.02 * tensor for name, tensor in offset(pipe.unet.float()).items()}
    pipe.to(torch.bfloat16)
    with caplog.at_level(logging.WARNING), NegativeDelta.attach(pipe, delta) as negative:
        assert 0.3 < negative.error < 1
    assert f"{100 * negative.error:.0f} % of their size off" in caplog.text
    with caplog.at_level(logging.WARNING), NegativeLayers.attach(sd15(), delta, store=2) as layers:
        assert f"rank 2: the negative weights that act are {100 * layers.error:.0f} %" in caplog.text


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "cogvideox", "wan"])
def test_layers_are_linear_in_their_weights(family: str) -> None:
    """Each that is said to be so, with its own input in a forward of the network."""
    pipe = PIPELINES[family]()
    model, seen = denoiser(pipe), {}
    delta = offset(model)
    layers = {name: m for name, m in model.named_modules() if is_linear_in_weights(m) and list(m.parameters(False))}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, args, out, name=name: seen.setdefault(name, (args, out)))
    sample(family, pipe)
    assert len(seen) > 20
    for name, (args, out) in seen.items():
        layer = layers[name]
        own = {key: delta[f"{name}.{key}"] for key, _ in layer.named_parameters(recurse=False)}
        summed = {key: parameter.data + own[key] for key, parameter in layer.named_parameters(recurse=False)}
        with torch.no_grad():
            whole = run_with(layer, summed, layer.forward, *args)
            torch.testing.assert_close(out + run_with(layer, own, layer.forward, *args), whole, atol=1e-4, rtol=1e-4)
            first = {"weight": own["weight"]}
            assert not torch.equal(run_with(layer, first, layer.forward, *args), whole)
        assert all(
            parameter.data_ptr() != own[key].data_ptr() for key, parameter in layer.named_parameters(recurse=False)
        )


def test_products_are_two_maps_and_never_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sd15()
    delta = offset(pipe.unet)
    near = {
        name: nearest(tensor, 3).product() if tensor.ndim > 1 else tensor.bfloat16() for name, tensor in delta.items()
    }
    with NegativeDelta.attach(pipe, near):
        expected = sample("sd15", pipe)
    with NegativeLayers.attach(pipe, delta, store=3):
        monkeypatch.setattr(Factors, "product", lambda _: pytest.fail("a product was made whole"))
        found = sample("sd15", pipe)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
