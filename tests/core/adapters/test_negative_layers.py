"""`NegativeLayers` against two whole models, and what is lost where δ is kept in fewer bits."""

from typing import Any

import pytest
import torch
from tests.core.adapters.reference import add_lora, assert_same, denoiser, two_model_loop
from tests.core.adapters.test_negative_delta import CALLS, PROMPTS, assert_unchanged, offset, shifted, snapshot
from tests.tiny import PIPELINES, sample, sd15, sdxl

from selfnpo_core import InputError, NegativeDelta
from selfnpo_core.adapters import NegativeLayers
from selfnpo_core.adapters.negative_layers import Stored


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_equals_two_models(call: dict[str, Any]) -> None:
    pipe = sd15()
    delta, before = offset(pipe.unet), snapshot(pipe.unet)
    expected = two_model_loop(pipe, shifted("sd15", delta, 0.0), shifted("sd15", delta, 0.5), **call)
    call = dict(call)
    condition = call.pop("condition", "null")
    with NegativeLayers.attach(pipe, delta, beta=1.0, condition=condition, store="exact") as negative:
        other = sample("sd15", pipe, **call)
        negative.set_strength(0.5)
        assert_same(sample("sd15", pipe, **call), expected)
        assert (other - expected).abs().max() > 1e-3
    assert_unchanged(pipe.unet, before)
    assert torch.equal(sample("sd15", pipe), sample("sd15", sd15()))


@pytest.mark.parametrize("family", ["sdxl", "sd3", "cogvideox", "wan"])
def test_equals_the_exchange_in_two_forwards(family: str) -> None:
    """Rows that are frames, rows of modulations, branches in forwards of their own."""
    pipe = PIPELINES[family]()
    model = denoiser(pipe)
    leaves = {name for name, module in model.named_modules() if not any(True for _ in module.children())}
    delta = {name: tensor for name, tensor in offset(model).items() if name.rpartition(".")[0] in leaves}
    plain = sample(family, pipe, PROMPTS)
    with NegativeDelta.attach(pipe, delta):
        expected = sample(family, pipe, PROMPTS)
    with NegativeLayers.attach(pipe, delta, store="exact"):
        assert_same(sample(family, pipe, PROMPTS), expected)
    assert (plain - expected).abs().max() > 1e-3
    assert torch.equal(sample(family, pipe, PROMPTS), plain)


def test_with_a_lora_on_both_branches() -> None:
    pipe = sdxl()
    delta = offset(pipe.unet)
    add_lora(pipe.unet, "style", seed=2)
    with NegativeDelta.attach(pipe, delta):
        expected = sample("sdxl", pipe, guidance_rescale=0.7, num_images_per_prompt=3)
    with NegativeLayers.attach(pipe, delta, store="exact"):
        assert_same(sample("sdxl", pipe, guidance_rescale=0.7, num_images_per_prompt=3), expected)


def test_fewer_bits_take_less_memory_and_lose_little() -> None:
    pipe = sd15()
    delta = {name: 0.1 * tensor for name, tensor in offset(pipe.unet).items()}
    plain, shares, errors = sample("sd15", pipe), [], []
    with NegativeLayers.attach(pipe, delta, store="exact") as negative:
        exact, whole = sample("sd15", pipe), negative.nbytes
    for store in ("bf16", "int8"):
        with NegativeLayers.attach(pipe, delta, store=store) as negative:
            errors.append(float((sample("sd15", pipe) - exact).norm() / (exact - plain).norm()))
            shares.append(negative.nbytes / whole)
    assert shares[0] == 0.5
    assert 0.25 < shares[1] < 0.27
    assert errors[0] < 0.01
    assert errors[1] < 0.02


def test_rounding_is_bounded_by_the_largest_of_the_channel() -> None:
    tensor = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    tensor[3] *= 1000
    tensor[5] = 0
    error = (Stored.of(tensor, "int8").times(1.0, torch.float32) - tensor).abs().flatten(1).amax(1)
    assert (error <= tensor.flatten(1).abs().amax(1) / 254 * 1.0001).all()
    assert torch.equal(
        Stored.of(tensor[0, 0, 0], "int8").times(2.0, torch.float32), 2 * tensor[0, 0, 0].bfloat16().float()
    )


def test_what_it_refuses() -> None:
    pipe = sd15()
    delta = offset(pipe.unet)
    with pytest.raises(InputError, match="store 'int4' is unknown"):
        NegativeLayers.attach(pipe, delta, store="int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="which the base has not"):
        NegativeLayers.attach(pipe, {"no.such.weight": torch.zeros(1)})
    pipe.unet.compile()
    with pytest.raises(InputError, match="compiled denoiser"):
        NegativeLayers.attach(pipe, delta)
    wan = PIPELINES["wan"]()
    with pytest.raises(InputError, match="no layer's own weight"):
        NegativeLayers.attach(wan, offset(wan.transformer))
    with NegativeLayers.attach(wan, {}):
        pass
    pipe = sd15()
    with NegativeLayers.attach(pipe, delta):
        with pytest.raises(InputError, match="attached already"):
            NegativeDelta.attach(pipe, delta)
        pipe.unet.conv_in.forward = lambda x: x
        with pytest.raises(InputError, match="forward was replaced"):
            sample("sd15", pipe)


def test_a_product_in_the_place_of_each_matrix() -> None:
    """Its own error is told; of the full rank there is none, and vectors are kept whole."""
    pipe = sd15()
    delta = offset(pipe.unet)
    with NegativeDelta.attach(pipe, delta):
        expected = sample("sd15", pipe)
    errors, sizes = [], []
    for rank in (2, 8, 999):
        with NegativeLayers.attach(pipe, delta, store=rank) as negative:
            errors.append(negative.error)
            sizes.append(negative.nbytes)
            last = sample("sd15", pipe)
    assert errors[0] > errors[1] > 0.3
    assert errors[2] < 1e-3  # vectors, in bf16
    assert sizes[0] < sizes[1] < sizes[2]
    torch.testing.assert_close(last, expected, atol=5e-3, rtol=1e-2)
    with pytest.raises(InputError, match="store '0' is unknown"):
        NegativeLayers.attach(pipe, delta, store=0)
