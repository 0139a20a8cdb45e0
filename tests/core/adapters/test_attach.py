"""`attach_npo`: from what training writes to negative guidance, and back to the pipeline as it was."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tests.core.adapters.reference import (
    Ask,
    add_lora,
    assert_same,
    by_hand,
    delta_of,
    lora_layers,
    model_with,
    two_model_loop,
)
from tests.tiny import PIPELINES, sample, sd15, sdxl

from selfnpo_core import InputError, NegativeAdapters, NegativeDelta, NpoRule, attach_npo
from selfnpo_core.models.headers import read_header
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.system.files import write_json
from selfnpo_core.weights.npo_folder import NpoConfig, Recommended


@pytest.fixture
def trained() -> Any:
    pipe = sd15()
    add_lora(pipe.unet, "npo", seed=1)
    return pipe.unet


def write(folder: Path, kind: str, trained: Any, **config: Any) -> Path:
    """An npo folder, by diffusers' and PEFT's own means."""
    if kind == "full":
        folder.mkdir()
        save_file(delta_of(trained, "npo"), folder / "delta.safetensors")
    else:
        layers = get_peft_model_state_dict(trained, adapter_name="npo")
        metadata = trained.peft_config["npo"].to_dict()
        diffusers.StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata
        )
    of_base = {"family": "sd15", "base_model": "tiny", "base_hash": weights_hash(sd15().unet)}
    written = NpoConfig(**of_base, train=kind, rank=4, recipe={}, **config)
    write_json(folder / "npo_config.json", written.model_dump(mode="json", by_alias=True))
    return folder


@pytest.mark.parametrize(("kind", "attached"), [("lora", NegativeAdapters), ("full", NegativeDelta)])
def test_equals_two_models_and_leaves_nothing(kind: str, attached: type, trained: Any, tmp_path: Path) -> None:
    pipe, plain = sd15(), sample("sd15", sd15())
    write(tmp_path / "npo", kind, trained)
    expected = two_model_loop(pipe, model_with("sd15", trained, {}), model_with("sd15", trained, {"npo": 0.5}))
    with attach_npo(pipe, tmp_path, beta=0.5) as negative:
        assert isinstance(negative, attached)
        assert_same(sample("sd15", pipe), expected)
    assert_untouched(pipe)
    assert torch.equal(sample("sd15", pipe), plain)


def test_what_is_not_given_is_as_recommended(trained: Any, tmp_path: Path) -> None:
    pipe = sd15()
    write(tmp_path / "npo", "lora", trained, recommended=Recommended(beta=0.5), negative_condition="prompt")
    base, half = model_with("sd15", trained, {}), model_with("sd15", trained, {"npo": 0.5})
    with attach_npo(pipe, tmp_path):
        assert_same(sample("sd15", pipe), two_model_loop(pipe, base, half, condition="prompt"))
    with attach_npo(pipe, tmp_path, beta=0.0, condition="null"):
        assert torch.equal(sample("sd15", pipe), sample("sd15", sd15()))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_recommended_rule_is_obeyed_and_another_overrides_it(kind: str, trained: Any, tmp_path: Path) -> None:
    base, weak, away = (model_with("sd15", trained, {"npo": beta}) for beta in (0.0, 0.5, -0.3))
    prompts = ["a red fox", "two blue birds"]

    def third(ask: Ask, _level: float) -> torch.Tensor:
        n, p, q = ask(base, "negative"), ask(base, "positive"), ask(weak, "positive")
        return n + 5.0 * (p - n) + 0.7 * (p - q)

    def switch(ask: Ask, level: float) -> torch.Tensor:
        n, p = ask(base, "negative") if level > 1 else ask(weak, "positive"), ask(base, "positive")
        return n + 5.0 * (p - n)

    def neon(ask: Ask, _level: float) -> torch.Tensor:
        n, p = ask(away, "negative"), ask(away, "positive")
        return n + 5.0 * (p - n)

    def neon_both(ask: Ask, _level: float) -> torch.Tensor:
        n, p = ask(weak, "negative"), ask(away, "positive")
        return n + 5.0 * (p - n)

    advice = Recommended(beta=0.5, rule=NpoRule(name="third", weight=0.7))
    folder = write(tmp_path / "npo", kind, trained, recommended=advice, negative_condition="prompt")
    asked: list[tuple[dict[str, Any], Any]] = [
        ({}, third),
        ({"rule": NpoRule(name="switch", switch=1.0)}, switch),
        ({"rule": NpoRule(name="neon", weight=0.3)}, neon),
        ({"rule": NpoRule(name="neon_both", weight=0.3), "condition": "null"}, neon_both),
    ]
    pipe = sd15()
    for how, guided in asked:
        with attach_npo(pipe, tmp_path, **how):
            assert_same(sample("sd15", pipe, prompts), by_hand("sd15", guided, prompts), 2e-5)
        assert_untouched(pipe)
    with attach_npo(pipe, folder, rule=NpoRule()):
        assert_same(sample("sd15", pipe), two_model_loop(pipe, base, weak, condition="prompt"))


@pytest.mark.parametrize("mode", ["adapters", "swap", "bf16", "int8", "lowrank"])
def test_beta_by_noise_level_in_every_mode(mode: Any, trained: Any, tmp_path: Path) -> None:
    """The same share at all levels is another beta."""
    pipe, folder = sd15(), write(tmp_path / "npo", "lora", trained)
    with attach_npo(pipe, folder, beta=0.4, mode=mode):
        expected = sample("sd15", pipe)
    with attach_npo(pipe, folder, beta=0.8, mode=mode, rule=NpoRule(beta_knots=((1.0, 0.5),))):
        assert_same(sample("sd15", pipe), expected)
    with attach_npo(pipe, folder, mode=mode, rule=NpoRule(beta_knots=((1.0, 0.0),))):
        assert_same(sample("sd15", pipe), sample("sd15", sd15()))
    assert_untouched(pipe)


def test_refuses_rules_that_do_not_fit(trained: Any, tmp_path: Path) -> None:
    folder, pipe, flux = write(tmp_path / "npo", "lora", trained), sd15(), PIPELINES["flux"]()
    third, neon = NpoRule(name="third", weight=0.7), NpoRule(name="neon", weight=0.3)
    for rule in (third, NpoRule(beta_knots=((1.0, 0.5),))):
        with pytest.raises(InputError, match=r"FluxPipeline does not run \[negative, positive\] as one batch"):
            attach_npo(flux, folder, rule=rule)
    for rule in (third, neon):
        with pytest.raises(InputError, match="says itself what is asked"):
            attach_npo(pipe, folder, rule=rule, condition="prompt")
    with pytest.raises(InputError, match="rule neon knows no share of a preference"):
        attach_npo(pipe, folder, rule=neon, alpha=0.5)
    negative = attach_npo(pipe, folder, rule=third)
    with pytest.raises(InputError, match="attached already"):
        attach_npo(pipe, folder)
    negative.detach()
    assert_untouched(pipe)


def test_a_bare_lora_file(trained: Any, tmp_path: Path) -> None:
    folder, pipe = write(tmp_path / "lora", "lora", trained), sd15()
    (folder / "npo_config.json").unlink()
    expected = two_model_loop(pipe, model_with("sd15", trained, {}), model_with("sd15", trained, {"npo": 1}))
    with attach_npo(pipe, folder / "pytorch_lora_weights.safetensors"):
        assert_same(sample("sd15", pipe), expected)


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_other_adapters_stay_as_they_are(weight: float, trained: Any, tmp_path: Path) -> None:
    """θ + η on the positive side, θ + α·η + β·δ on the negative one; "style" is loaded but not active."""
    pipe = sd15()
    add_lora(pipe.unet, "eta", seed=2, targets=("to_q", "conv1"))
    add_lora(pipe.unet, "style", seed=3)
    pipe.unet.set_adapters(["eta"], [weight])
    base = model_with("sd15", pipe.unet, {"eta": weight})
    other = model_with("sd15", pipe.unet, {"eta": 0.4 * weight})
    with torch.no_grad():
        for name, delta in delta_of(trained, "npo").items():
            other.get_parameter(name).add_(delta)
    before = sample("sd15", pipe)
    with attach_npo(pipe, write(tmp_path / "npo", "lora", trained), alpha=0.4):
        assert_same(sample("sd15", pipe), two_model_loop(pipe, base, other))
    assert pipe.get_active_adapters() == ["eta"]
    assert set(pipe.get_list_adapters()["unet"]) == {"eta", "style"}
    assert torch.equal(sample("sd15", pipe), before)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("preference", ["lora", "whole weights"])
def test_shares_of_a_preference(alpha: float, kind: str, preference: str, trained: Any, tmp_path: Path) -> None:
    """θ + η against θ + α·η + β·δ, in every mode that is exact, against weights mixed by hand."""
    pipe, mixed = sd15(), [sd15().unet, sd15().unet]
    tuned = sd15().unet
    add_lora(tuned, "eta", seed=2, targets=("to_q", "conv1"))
    eta = delta_of(tuned, "eta")
    if preference == "lora":
        add_lora(pipe.unet, "eta", seed=2, targets=("to_q", "conv1"))
        given = None
    else:
        given = {**eta, "conv_in.bias": torch.linspace(-0.2, 0.2, 32)}
        eta = given
    with torch.no_grad():
        for name, tensor in eta.items():
            mixed[0].get_parameter(name).add_(tensor)
            mixed[1].get_parameter(name).add_(alpha * tensor)
            if given is not None:
                pipe.unet.get_parameter(name).add_(tensor)
        for name, tensor in delta_of(trained, "npo").items():
            mixed[1].get_parameter(name).add_(0.7 * tensor)
    expected = two_model_loop(pipe, *(unet.requires_grad_(False) for unet in mixed))
    folder, before = write(tmp_path / "npo", kind, trained), sample("sd15", pipe)
    modes = ["auto", "swap", "lowrank"] if kind == "lora" or given is not None else ["auto", "swap"]
    for mode in modes:
        call: Any = {"alpha": alpha, "beta": 0.7, "eta": given, "mode": mode, "rank": 999, "other_base": True}
        with attach_npo(pipe, folder, **call):
            drawn = sample("sd15", pipe)
        if mode == "lowrank":  # of full rank, but vectors are kept in bf16
            torch.testing.assert_close(drawn, expected, atol=5e-3, rtol=1e-2)
        else:
            assert_same(drawn, expected)
        assert torch.equal(sample("sd15", pipe), before)
    assert (before - expected).abs().max() > 1e-2


def test_detach_after_the_user_loaded_another(trained: Any, tmp_path: Path) -> None:
    pipe = sd15()
    negative = attach_npo(pipe, write(tmp_path / "npo", "lora", trained))
    add_lora(pipe.unet, "style", seed=3, targets=("to_q", "conv1"))
    negative.detach()
    assert pipe.get_list_adapters() == {"unet": ["style"]}
    base = model_with("sd15", pipe.unet, {"style": 1})
    assert_same(sample("sd15", pipe), two_model_loop(pipe, base, base))


def test_refuses_another_base(trained: Any, tmp_path: Path) -> None:
    for kind in ("lora", "full"):
        folder, other = write(tmp_path / kind, kind, trained), sd15()
        other.unet.conv_in.weight.data += 0.1
        with pytest.raises(InputError, match="was made for sd15 base tiny"):
            attach_npo(other, folder)
        assert_untouched(other)
        attach_npo(other, folder, other_base=True).detach()
        with pytest.raises(InputError, match=r"no LoRA for this model|which the base has not|but .* in the base"):
            attach_npo(xl := sdxl(), folder, other_base=True)
        assert_untouched(xl)


def test_refuses_what_cannot_act(trained: Any, tmp_path: Path) -> None:
    folder, pipe = write(tmp_path / "npo", "lora", trained), sd15()
    file = folder / "pytorch_lora_weights.safetensors"
    with pytest.raises(InputError, match="is a pickle"):
        attach_npo(pipe, tmp_path / "lora.bin")
    with pytest.raises(InputError, match="is unknown: use 'null' or 'prompt'"):
        attach_npo(pipe, folder, condition="no")
    with pytest.raises(InputError, match="beta is nan"):
        attach_npo(pipe, folder, beta=float("nan"))
    with pytest.raises(InputError, match="do not know StableDiffusionPAGPipeline"):
        attach_npo(diffusers.StableDiffusionPAGPipeline(**pipe.components, requires_safety_checker=False), folder)
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match="has no effect"):
        attach_npo(pipe, folder)
    assert_untouched(pipe)


def test_refuses_alpha_without_eta(trained: Any, tmp_path: Path) -> None:
    lora, full, pipe = write(tmp_path / "lora", "lora", trained), write(tmp_path / "full", "full", trained), sd15()
    with pytest.raises(InputError, match="a LoRA named 'eta', and none is active"):
        attach_npo(pipe, lora, alpha=0.5)
    with pytest.raises(InputError, match="a LoRA named 'eta', and none is active"):
        attach_npo(pipe, full, alpha=0.5)
    with pytest.raises(InputError, match="mode adapters is for LoRAs"):
        attach_npo(pipe, full, mode="adapters")
    add_lora(pipe.unet, "eta", seed=2)
    pipe.unet.set_adapters([])
    with pytest.raises(InputError, match="none is active"):
        attach_npo(pipe, lora, alpha=0.5)


def test_refuses_to_take_the_place_of_another(trained: Any, tmp_path: Path) -> None:
    folder, pipe = write(tmp_path / "npo", "lora", trained), sd15()
    with attach_npo(pipe, folder), pytest.raises(InputError, match="attached already"):
        attach_npo(pipe, folder)
    add_lora(pipe.unet, "npo", seed=3)
    with pytest.raises(InputError, match="adapter 'npo' already"):
        attach_npo(pipe, folder)
    assert pipe.get_active_adapters() == ["npo"]


def test_layers_of_a_text_encoder_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There are no negative rows in it."""
    trained = sd15()
    add_lora(trained.unet, "npo", seed=1)
    add_lora(trained.text_encoder, "npo", seed=2, targets=("q_proj",))
    layers = get_peft_model_state_dict(trained.text_encoder, adapter_name="npo")
    file = write(tmp_path / "npo", "lora", trained.unet) / "pytorch_lora_weights.safetensors"
    text = {f"text_encoder.{name}": tensor for name, tensor in layers.items()}
    save_file(load_file(file) | text, file, read_header(file).metadata)
    pipe = sd15()
    base, other = model_with("sd15", trained.unet, {}), model_with("sd15", trained.unet, {"npo": 1})
    with attach_npo(pipe, file):
        assert_same(sample("sd15", pipe), two_model_loop(pipe, base, other))
    assert "left out are 2 layers of text_encoder" in caplog.text
    assert_untouched(pipe)
    assert torch.equal(sample("sd15", pipe), sample("sd15", sd15()))


def assert_untouched(pipe: Any) -> None:
    assert lora_layers(pipe.unet) == []
    assert "peft_config" not in vars(pipe.unet) or not pipe.unet.peft_config
    assert not {"encode_prompt", "maybe_free_model_hooks"} & set(vars(pipe))
    assert not {"_selfnpo", "forward"} & set(vars(pipe.unet))
