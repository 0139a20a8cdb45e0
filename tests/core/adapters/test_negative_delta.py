"""`NegativeDelta` against two whole models: full weights, exchanged and given back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.core.adapters.reference import TwoModels, add_lora, assert_same, denoiser, model_with, two_model_loop
from tests.tiny import PIPELINES, sample, sd15
from torch import Tensor

from selfnpo_core import InputError, NegativeDelta

PROMPTS = ["a red fox", "two blue birds"]
CALLS: dict[str, dict[str, Any]] = {
    "two prompts, two images": {"prompt": PROMPTS, "num_images_per_prompt": 2, "guidance_rescale": 0.7},
    "negative prompt": {"negative_prompt": "blurry"},
    "positive prompt": {"condition": "prompt"},
}


def offset(model: torch.nn.Module) -> dict[str, Tensor]:
    """Every parameter, norms and biases too, by a tenth of its size."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.1 * p.std().nan_to_num(0.1).clamp(0.02) * torch.randn(p.shape, generator=generator)
        for name, p in model.named_parameters()
    }


def shifted(family: str, delta: dict[str, Tensor], beta: float) -> torch.nn.Module:
    model = denoiser(PIPELINES[family]())
    with torch.no_grad():
        for name, tensor in delta.items():
            model.get_parameter(name).add_(beta * tensor)
    return model.requires_grad_(False)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_equals_two_models(call: dict[str, Any]) -> None:
    pipe = sd15()
    delta, before = offset(pipe.unet), snapshot(pipe.unet)
    expected = two_model_loop(pipe, shifted("sd15", delta, 0.0), shifted("sd15", delta, 0.5), **call)
    call = dict(call)
    with NegativeDelta.attach(pipe, delta, beta=1.0, condition=call.pop("condition", "null")) as negative:
        other = sample("sd15", pipe, **call)
        negative.set_strength(0.5)
        assert negative.beta == 0.5
        assert_same(sample("sd15", pipe, **call), expected)
        assert (other - expected).abs().max() > 1e-3
    assert_unchanged(pipe.unet, before)
    assert torch.equal(sample("sd15", pipe), sample("sd15", sd15()))


def test_strength_can_change_within_a_call() -> None:
    pipe = sd15()
    with NegativeDelta.attach(pipe, offset(pipe.unet)) as negative:

        def off(*_: Any) -> dict[str, Any]:
            negative.set_strength(0.0)
            return {}

        constant = sample("sd15", pipe)
        assert (sample("sd15", pipe, callback_on_step_end=off) - constant).abs().max() > 1e-3


def test_guidance_off_changes_nothing() -> None:
    pipe = sd15()
    expected = sample("sd15", pipe, PROMPTS, scale=1.0)
    with NegativeDelta.attach(pipe, offset(pipe.unet)):
        assert torch.equal(sample("sd15", pipe, PROMPTS, scale=1.0), expected)


def test_lora_on_both_branches() -> None:
    pipe = sd15()
    delta = offset(pipe.unet)
    add_lora(pipe.unet, "style", seed=2)
    base, other = model_with("sd15", pipe.unet, {"style": 1}), model_with("sd15", pipe.unet, {"style": 1})
    with torch.no_grad():
        for name, tensor in delta.items():
            other.get_parameter(name).add_(tensor)
    with NegativeDelta.attach(pipe, delta):
        assert_same(sample("sd15", pipe), two_model_loop(pipe, base, other))
        pipe.fuse_lora()  # changes the weights that the offset is added to
        assert_same(sample("sd15", pipe), two_model_loop(pipe, base, other))


@pytest.mark.parametrize("family", ["sdxl", "sd3", "cogvideox", "wan", "flux"])
def test_other_families(family: str) -> None:
    pipe, reference = PIPELINES[family](), PIPELINES[family]()
    delta = offset(denoiser(pipe))
    order = "separate" if family in ("wan", "flux") else "negative first"
    models = TwoModels(shifted(family, delta, 0.0), shifted(family, delta, 1.0), order=order)
    vars(reference)["unet" if family == "sdxl" else "transformer"] = models
    with torch.no_grad(), NegativeDelta.attach(pipe, delta):
        actual = sample(family, pipe, PROMPTS, negative_prompt=["blurry", "ugly"])
        assert_same(actual, sample(family, reference, PROMPTS, negative_prompt=["blurry", "ugly"]))


def test_arguments_are_split_by_branch() -> None:
    """A ControlNet's residuals are as long as the batch, in lists and alone; attention's arguments are in a dict."""
    pipe, generator = sd15(), torch.Generator().manual_seed(1)
    delta = offset(pipe.unet)
    positive, negative = shifted("sd15", delta, 0.0), shifted("sd15", delta, 1.0)

    def given(batch: int) -> dict[str, Any]:
        sizes = [(32, 8), (32, 8), (32, 4), (64, 4)]
        down = tuple(torch.randn(batch, width, size, size, generator=generator) for width, size in sizes)
        return {
            "sample": torch.randn(batch, 4, 8, 8, generator=generator),
            "timestep": torch.arange(batch) * 100,
            "encoder_hidden_states": torch.randn(batch, batch, 32, generator=generator),
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": torch.randn(batch, 64, 4, 4, generator=generator),
            "cross_attention_kwargs": {"scale": 1.0},
        }

    def rows(call: dict[str, Any], part: slice) -> dict[str, Any]:
        halves = {name: value[part] for name, value in call.items() if isinstance(value, Tensor)}
        down = tuple(residual[part] for residual in call["down_block_additional_residuals"])
        return {**call, **halves, "down_block_additional_residuals": down}

    call = given(4)
    with torch.no_grad(), NegativeDelta.attach(pipe, delta):
        pipe.encode_prompt(PROMPTS, "cpu", 1, True)
        actual = pipe.unet(**call).sample
        expected = negative(**rows(call, slice(0, 2))).sample, positive(**rows(call, slice(2, 4))).sample
    assert_same(actual, torch.cat(expected))


def test_weights_come_back_after_an_exception() -> None:
    pipe = sd15()
    before = snapshot(pipe.unet)

    def fail(*_: Any) -> None:
        assert not torch.equal(pipe.unet.conv_in.weight, before["conv_in.weight"][1])
        raise ZeroDivisionError

    handle = pipe.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), NegativeDelta.attach(pipe, offset(pipe.unet)):
        sample("sd15", pipe)
    handle.remove()
    assert_unchanged(pipe.unet, before)
    assert "forward" not in vars(pipe.unet)


def test_half_precision_and_a_file(tmp_path: Path) -> None:
    pipe = sd15()
    delta = {name: tensor.bfloat16() for name, tensor in offset(pipe.unet).items()}
    save_file(delta, tmp_path / "delta.safetensors")
    pipe.to(torch.bfloat16)
    before = snapshot(pipe.unet)
    expected = two_model_loop(sd15(), shifted("sd15", delta, 0.0), shifted("sd15", delta, 1.0))
    with NegativeDelta.attach(pipe, tmp_path / "delta.safetensors"):
        assert_same(sample("sd15", pipe).float(), expected, 0.08)
    assert_unchanged(pipe.unet, before)


def test_refusals(tmp_path: Path) -> None:
    pipe = sd15()
    delta = offset(pipe.unet)
    with pytest.raises(InputError, match="'nope', which the base has not"):
        NegativeDelta.attach(pipe, {"nope": torch.zeros(1)})
    with pytest.raises(InputError, match=r"'conv_in.bias' is"):
        NegativeDelta.attach(pipe, {"conv_in.bias": torch.zeros(1)})
    with pytest.raises(InputError, match="beta is nan"):
        NegativeDelta.attach(pipe, delta, beta=float("nan"))
    with pytest.raises(InputError, match=r"no readable \.safetensors file"):
        NegativeDelta.attach(pipe, tmp_path / "delta.safetensors")
    with NegativeDelta.attach(pipe, delta):
        with pytest.raises(InputError, match="attached already"):
            NegativeDelta.attach(pipe, delta)
        embeds, null = pipe.encode_prompt("a red fox", "cpu", 1, True)
        with pytest.raises(InputError, match="batch of 3 for 1 prompts"):
            pipe.unet(torch.zeros(3, 4, 8, 8), 10, torch.cat([null, embeds, embeds]))
        pipe.fuse_qkv_projections()
        with pytest.raises(InputError, match="fused projections"):
            sample("sd15", pipe)
    assert "encode_prompt" not in vars(pipe)


def snapshot(model: torch.nn.Module) -> dict[str, tuple[int, Tensor]]:
    """Where each parameter lies, and what it holds."""
    return {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}


def assert_unchanged(model: torch.nn.Module, before: dict[str, tuple[int, Tensor]]) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
