"""Small offsets on weights of 16 bits: θ + β·δ, rounded to θ's grid, would lose them."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
from selfnpo_core.negative import Factors, nearest, relative_drift

DRIFT = 0.001
Attach = Callable[..., AbstractContextManager[Any]]
WAYS: dict[str, Attach] = {
    "swap": NegativeDelta.attach,
    "bf16": lambda pipe, delta: NegativeLayers.attach(pipe, delta, store="bf16"),
    "int8": lambda pipe, delta: NegativeLayers.attach(pipe, delta, store="int8"),
    "full rank": lambda pipe, delta: NegativeLayers.attach(pipe, delta, store=999),
}


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def half(request: pytest.FixtureRequest) -> Any:
    return sd15().to(request.param)


@pytest.mark.parametrize("way", WAYS)
def test_the_effect_is_kept(way: str, half: Any) -> None:
    """Of a layer whose two halves are one, and inputs of which one half is the other's negative: y(x; θ) is zero, and
    what is left is δ's alone, not hidden by the rounding of outputs."""
    layer = half.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    weight, (name,) = layer.weight.data, [n for n, p in half.unet.named_parameters() if p is layer.weight]
    columns, generator = weight.shape[1] // 2, torch.Generator().manual_seed(0)
    weight[:, columns:] = weight[:, :columns]
    x = torch.randn((64, columns), generator=generator)
    x = torch.cat([x, -x], dim=1).to(weight.dtype)
    delta = DRIFT * weight.float().std() * torch.randn(weight.shape, generator=generator)
    before, wanted = snapshot(half.unet), x.float() @ delta.T
    with (
        torch.no_grad(),
        WAYS[way](half, {name: delta}) as negative,
        negative._branches.asked((1.0,)),
        negative._weights(1.0) if way == "swap" else nullcontext(),
    ):
        found = layer(x).float()
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
    assert_unchanged(half.unet, before)


def test_what_rounding_takes_is_kept_apart_only_where_it_is_much(half: Any, caplog: pytest.LogCaptureFixture) -> None:
    base = {name: parameter.float() for name, parameter in half.unet.named_parameters()}
    whole = offset(half.unet)
    delta = {name: DRIFT / relative_drift(whole, base) * tensor for name, tensor in whole.items()}
    for times, apart in ((1.0, True), (1000.0, False)):
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

    def keep(name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, out: Tensor) -> None:
            seen.setdefault(name, (args, out.clone()))

        return hook

    for name, layer in layers.items():
        layer.register_forward_hook(keep(name))
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
