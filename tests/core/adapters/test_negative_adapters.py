"""`NegativeAdapters` against two whole models, and everything it refuses."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from tests.core.adapters.reference import (
    CONVOLUTIONS,
    TwoModels,
    add_lora,
    assert_same,
    delta_of,
    denoiser,
    layers_of,
    lora_layers,
    model_with,
    two_model_loop,
)
from tests.tiny import PIPELINES, sample, sd15

from selfnpo_core import InputError, NegativeAdapters, NegativeDelta

PROMPTS = ["a red fox", "two blue birds"]
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two prompts, two images": {"prompt": PROMPTS, "num_images_per_prompt": 2},
    "rescale": {"guidance_rescale": 0.7},
    "negative prompt": {"prompt": PROMPTS, "negative_prompt": ["blurry", "ugly"], "num_images_per_prompt": 2},
    "weak guidance": {"scale": 1.5},
}


@pytest.fixture
def pipe() -> Any:
    pipe = sd15()
    add_lora(pipe.unet, "npo", seed=1)
    return pipe


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    """Guidance without any LoRA."""
    return sample("sd15", sd15())


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_equals_two_models(pipe: Any, call: dict[str, Any]) -> None:
    base, other = model_with("sd15", pipe.unet, {}), model_with("sd15", pipe.unet, {"npo": 1})
    expected = two_model_loop(pipe, base, other, **call)
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        assert_same(sample("sd15", pipe, **call), expected)
    assert_differs(expected, sample("sd15", sd15(), **call))


def test_strength(pipe: Any, plain: torch.Tensor) -> None:
    base, half = model_with("sd15", pipe.unet, {}), model_with("sd15", pipe.unet, {"npo": 0.5})
    negative = NegativeAdapters.attach(pipe, {"npo": 1.0})
    negative.set_strength({"npo": 0.5})
    assert negative.weights == {"npo": 0.5}
    assert_same(sample("sd15", pipe), two_model_loop(pipe, base, half))
    negative.set_strength({"npo": 0.0})
    assert torch.equal(sample("sd15", pipe), plain)


def test_positive_prompt_as_condition(pipe: Any) -> None:
    base, other = model_with("sd15", pipe.unet, {}), model_with("sd15", pipe.unet, {"npo": 1})
    expected = two_model_loop(pipe, base, other, prompt=PROMPTS, condition="prompt")
    with NegativeAdapters.attach(pipe, {"npo": 1.0}, condition="prompt"):
        assert_same(sample("sd15", pipe, PROMPTS), expected)
        with pytest.raises(InputError, match="negative prompt has no effect"):
            sample("sd15", pipe, negative_prompt="blurry")


def test_positive_prompt_as_condition_takes_pooled_embeddings_too() -> None:
    pipe = PIPELINES["sdxl"]()
    add_lora(pipe.unet, "npo", seed=1)
    embeds, _, pooled, _ = pipe.encode_prompt("a red fox", do_classifier_free_guidance=True)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds}
    given |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled}
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        expected = sample("sdxl", pipe, prompt=None, **given)
    with NegativeAdapters.attach(pipe, {"npo": 1.0}, condition="prompt"):
        assert_same(sample("sdxl", pipe), expected)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_guidance_off_changes_nothing(pipe: Any, scale: float) -> None:
    expected = sample("sd15", sd15(), PROMPTS, scale=scale)
    for condition in ("null", "prompt"):
        with NegativeAdapters.attach(pipe, {"npo": 1.0}, condition=condition):
            assert torch.equal(sample("sd15", pipe, PROMPTS, scale=scale), expected)


def test_guidance_that_ends_early(pipe: Any, plain: torch.Tensor) -> None:
    cutoff = {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)}
    everywhere = NegativeAdapters.attach(pipe, {"npo": 1.0})
    with_npo = sample("sd15", pipe, **cutoff)
    assert_differs(with_npo, sample("sd15", pipe))
    everywhere.detach()
    assert_differs(with_npo, sample("sd15", sd15(), **cutoff))


def test_other_lora_on_both_branches(pipe: Any) -> None:
    add_lora(pipe.unet, "style", seed=2)
    pipe.unet.set_adapters(["style", "npo"], [0.7, 0.3])
    base = model_with("sd15", pipe.unet, {"style": 0.7})
    other = model_with("sd15", pipe.unet, {"style": 0.7, "npo": 1.0})
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):  # whatever weight npo was given for all rows
        assert_same(sample("sd15", pipe, PROMPTS), two_model_loop(pipe, base, other, prompt=PROMPTS))


def test_lora_loaded_while_attached(pipe: Any) -> None:
    negative = NegativeAdapters.attach(pipe, {"npo": 1.0})
    add_lora(pipe.unet, "style", seed=2, targets=(*CONVOLUTIONS, "to_q"))
    base = model_with("sd15", pipe.unet, {"style": 1})
    other = model_with("sd15", pipe.unet, {"style": 1, "npo": 1})
    assert_same(sample("sd15", pipe), two_model_loop(pipe, base, other))
    negative.detach()
    assert_same(sample("sd15", pipe), two_model_loop(pipe, base, base))
    assert pipe.get_active_adapters() == ["style"]


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_preference_tuned_positive_side(pipe: Any, alpha: float) -> None:
    """θ + η against θ + α·η + β·δ. Loading npo last had made eta inactive; `shared` keeps it active."""
    pipe = sd15()
    add_lora(pipe.unet, "eta", seed=2, targets=("to_q", "conv1"))
    add_lora(pipe.unet, "npo", seed=1)
    pipe.unet.set_adapters(["npo"])
    base = model_with("sd15", pipe.unet, {"eta": 1})
    other = model_with("sd15", pipe.unet, {"eta": alpha, "npo": 0.5})
    with NegativeAdapters.attach(pipe, {"npo": 0.5, "eta": alpha - 1}, shared=("eta",)):
        assert_same(sample("sd15", pipe), two_model_loop(pipe, base, other))
    assert pipe.get_active_adapters() == []


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_convolutions_feed_forward_and_scales(config: dict[str, bool]) -> None:
    pipe = sd15()
    add_lora(pipe.unet, "npo", seed=1, targets=CONVOLUTIONS, **config)
    base, other = model_with("sd15", pipe.unet, {}), model_with("sd15", pipe.unet, {"npo": 0.8})
    with NegativeAdapters.attach(pipe, {"npo": 0.8}):
        assert_same(sample("sd15", pipe, PROMPTS), two_model_loop(pipe, base, other, prompt=PROMPTS))


MORE = {"cogvideox": "num_videos_per_prompt", "wan": "num_videos_per_prompt", "flux": ""}
"""The argument that is pictures a prompt, where it has another name or is not asked for."""
SEPARATE = ("wan", "flux", "qwen-image", "flux2-klein")
ORDER = {**dict.fromkeys(SEPARATE, "separate"), "z-image": "positive first"}
OFF = {"z-image": 0.0}
"""The scale that is no guidance, where it is not 1."""


def drawn(family: str, pipe: Any, **call: Any) -> torch.Tensor:
    """Of two prompts and two negative prompts, in lists of its own: one pipeline writes into them."""
    texts = ["blurry", "ugly and more"]
    if family != "flux2-klein":
        return sample(family, pipe, [*PROMPTS], negative_prompt=texts, **call)
    embeds, _ = PIPELINES[family]().encode_prompt(texts, max_sequence_length=16)
    return sample(family, pipe, [*PROMPTS], negative_prompt_embeds=embeds, **call)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "cogvideox", "wan", "flux", "qwen-image", "z-image", "flux2-klein"])
def test_other_families(family: str) -> None:
    """Also with a LoRA of the user's on both branches."""
    pipe, reference = PIPELINES[family](), PIPELINES[family]()
    more = MORE.get(family, "num_images_per_prompt")
    call = {more: 2} if more else {}
    model, part = denoiser(pipe), "unet" if family == "sdxl" else "transformer"
    add_lora(model, "style", seed=2, targets=layers_of(family))
    add_lora(model, "npo", seed=1, targets=layers_of(family))
    model.set_adapters(["style"])
    models = model_with(family, model, {"style": 1}), model_with(family, model, {"style": 1, "npo": 0.8})
    vars(reference)[part] = TwoModels(*models, order=ORDER.get(family, "negative first"))
    plain = PIPELINES[family]()
    vars(plain)[part] = models[0]
    with torch.no_grad(), NegativeAdapters.attach(pipe, {"npo": 0.8}):
        actual = drawn(family, pipe, **call)
        assert_same(actual, drawn(family, reference, **call))
        assert_differs(actual, drawn(family, plain, **call))
        off = OFF.get(family, 1.0)
        assert_same(sample(family, pipe, [*PROMPTS], scale=off), sample(family, plain, [*PROMPTS], scale=off))


@pytest.mark.parametrize("family", ["qwen-image", "z-image", "flux2-klein"])
def test_whole_weights_of_other_families(family: str) -> None:
    """An offset in a forward of its own; of those that take lists all lists are by row."""
    pipe = PIPELINES[family]()
    add_lora(denoiser(pipe), "npo", seed=1, targets=layers_of(family))
    delta = delta_of(denoiser(pipe), "npo")
    with torch.no_grad():
        with NegativeAdapters.attach(pipe, {"npo": 0.8}):
            expected = drawn(family, pipe, num_images_per_prompt=2)
        with NegativeDelta.attach(pipe, delta, beta=0.8):
            assert_same(drawn(family, pipe, num_images_per_prompt=2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen-image", "z-image", "flux2-klein"])
def test_compiled_denoisers_of_other_families(family: str) -> None:
    pipe = PIPELINES[family]()
    add_lora(pipe.transformer, "npo", seed=1, targets=layers_of(family))
    with torch.no_grad(), NegativeAdapters.attach(pipe, {"npo": 0.8}):
        expected = drawn(family, pipe)
        torch._dynamo.reset()
        pipe.transformer.compile(backend="eager")
        assert_same(drawn(family, pipe), expected)


def test_what_sees_all_prompts_as_one_sequence_is_not_split() -> None:
    """Z-Image embeds the captions of all rows, each of its own length, in one matrix product."""
    pipe = PIPELINES["z-image"]()
    add_lora(pipe.transformer, "npo", seed=1, targets=("cap_embedder.1",))
    with pytest.raises(InputError, match=r"'cap_embedder.1' sees all prompts as one sequence"):
        NegativeAdapters.attach(pipe, {"npo": 1.0})


def test_positive_prompt_as_condition_of_lists() -> None:
    pipe = PIPELINES["z-image"]()
    add_lora(pipe.transformer, "npo", seed=1)
    with torch.no_grad():
        with NegativeAdapters.attach(pipe, {"npo": 1.0}):
            expected = sample("z-image", pipe, [*PROMPTS], negative_prompt=[*PROMPTS])
        embeds, null = pipe.encode_prompt([*PROMPTS])
        with NegativeAdapters.attach(pipe, {"npo": 1.0}, condition="prompt"):
            assert_same(sample("z-image", pipe, [*PROMPTS]), expected)
            with pytest.raises(InputError, match="as texts here"):
                sample("z-image", pipe, None, prompt_embeds=embeds, negative_prompt_embeds=null)


def test_dynamic_guidance_of_cogvideox() -> None:
    pipe, reference = PIPELINES["cogvideox"](), PIPELINES["cogvideox"]()
    add_lora(pipe.transformer, "npo", seed=1)
    models = model_with("cogvideox", pipe.transformer, {}), model_with("cogvideox", pipe.transformer, {"npo": 1})
    vars(reference)["transformer"] = TwoModels(*models)
    with torch.no_grad(), NegativeAdapters.attach(pipe, {"npo": 1.0}):
        expected = sample("cogvideox", reference, use_dynamic_cfg=True)
        assert_same(sample("cogvideox", pipe, use_dynamic_cfg=True), expected)


def test_pipelines_of_the_same_components(pipe: Any) -> None:
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    call = {"image": picture, "strength": 1.0, "height": None, "width": None}
    both = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    reference = diffusers.StableDiffusionImg2ImgPipeline(**sd15().components, requires_safety_checker=False)
    vars(reference)["unet"] = TwoModels(model_with("sd15", pipe.unet, {}), model_with("sd15", pipe.unet, {"npo": 1}))
    call = {"image": picture, "strength": 0.9, "prompt": "a red fox", "num_inference_steps": 3, "output_type": "latent"}
    with torch.no_grad(), NegativeAdapters.attach(both, {"npo": 1.0}):
        actual = both(**call, generator=torch.Generator().manual_seed(1)).images
        assert_same(actual, reference(**call, generator=torch.Generator().manual_seed(1)).images)
        with pytest.raises(InputError, match="outside of a call of the pipeline"):
            sample("sd15", pipe)
        with pytest.raises(InputError, match="attached already"):
            NegativeAdapters.attach(pipe, {"npo": 1.0})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipe: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype)
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        actual = sample("sd15", pipe).float()
    expected = two_model_loop(
        sd15(), model_with("sd15", pipe.unet.float(), {}), model_with("sd15", pipe.unet.float(), {"npo": 1})
    )
    assert_same(actual, expected, 0.08)


def test_gradients_pass(pipe: Any) -> None:
    """Outside of no_grad nothing is changed in place."""
    embeds, null = pipe.encode_prompt("a red fox", "cpu", 1, True)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        pipe.encode_prompt("a red fox", "cpu", 1, True)
        pipe.unet(x, 10, torch.cat([null, embeds]).detach()).sample[0].sum().backward()
    other = model_with("sd15", pipe.unet, {"npo": 1})
    y = x.detach().clone().requires_grad_()
    other(y, 10, torch.cat([null, embeds]).detach()).sample[0].sum().backward()
    assert_same(x.grad, y.grad)


def test_detached_is_as_never_attached_but_inactive(pipe: Any, plain: torch.Tensor) -> None:
    """Loading had made the adapter active for all rows, where nobody means negative weights to act."""
    names = {id(module): set(vars(module)) for module in pipe.unet.modules()}
    active = sample("sd15", pipe)
    with NegativeAdapters.attach(pipe, {"npo": 1.0}) as negative:
        assert pipe.get_active_adapters() == []
    negative.detach()  # again: nothing happens
    assert {id(module): set(vars(module)) for module in pipe.unet.modules()} == names
    assert not {"encode_prompt", "maybe_free_model_hooks"} & set(vars(pipe))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())
    assert pipe.get_active_adapters() == []
    assert torch.equal(sample("sd15", pipe), plain)
    pipe.unet.set_adapters(["npo"])
    assert torch.equal(sample("sd15", pipe), active)
    pipe.unet.disable_adapters()
    assert torch.equal(sample("sd15", pipe), plain)
    NegativeAdapters.attach(pipe, {"npo": 1.0}).detach()


def test_a_lora_of_zeros_is_plain_guidance(pipe: Any, plain: torch.Tensor) -> None:
    for layer in lora_layers(pipe.unet):
        layer.lora_B["npo"].weight.data.zero_()
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        assert torch.equal(sample("sd15", pipe), plain)


def test_a_call_that_fails_leaves_the_next_one_right(pipe: Any, plain: torch.Tensor) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        expected = sample("sd15", pipe)
        handle = pipe.unet.mid_block.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            sample("sd15", pipe, PROMPTS)
        handle.remove()
        assert torch.equal(sample("sd15", pipe), expected)
    pipe.unet.disable_adapters()
    assert torch.equal(sample("sd15", pipe), plain)


# What is refused -----------------------------------------------------------------------------------------------------


def test_refuses_unknown_pipelines(pipe: Any) -> None:
    pag = diffusers.StableDiffusionPAGPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(InputError, match=r"do not know StableDiffusionPAGPipeline.*one of StableDiffusionPipeline, "):
        NegativeAdapters.attach(pag, {"npo": 1.0})


def test_refuses_batches_of_more_branches(pipe: Any) -> None:
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        embeds, null = pipe.encode_prompt("a red fox", "cpu", 1, True)
        with pytest.raises(InputError, match=r"batch of 3 for 1 prompts.*on"):
            pipe.unet(torch.zeros(3, 4, 8, 8), 10, torch.cat([null, embeds, embeds]))


def test_refuses_a_batch_that_guidance_does_not_explain(pipe: Any) -> None:
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        embeds, _ = pipe.encode_prompt("a red fox", "cpu", 1, False)
        with pytest.raises(InputError, match=r"batch of 2 for 1 prompts.*off"):
            pipe.unet(torch.zeros(2, 4, 8, 8), 10, torch.cat([embeds, embeds]))


def test_refuses_forwards_outside_of_a_call() -> None:
    for family in ("sd15", "wan"):
        pipe = PIPELINES[family]()
        add_lora(denoiser(pipe), "npo", seed=1)
        with NegativeAdapters.attach(pipe, {"npo": 1.0}):
            sample(family, pipe)
            with pytest.raises(InputError, match="outside of a call"):
                denoiser(pipe)(torch.zeros(2, 16, 2, 2, 2) if family == "wan" else torch.zeros(2, 4, 16, 16), 10, None)


def test_refuses_unknown_adapters_and_conditions(pipe: Any) -> None:
    with pytest.raises(InputError, match="no LoRA named 'nope', but npo"):
        NegativeAdapters.attach(pipe, {"nope": 1.0})
    with pytest.raises(InputError, match="no LoRA named 'npo', but none at all"):
        NegativeAdapters.attach(sd15(), {"npo": 1.0})
    with pytest.raises(InputError, match="no adapter is named"):
        NegativeAdapters.attach(pipe, {})
    with pytest.raises(InputError, match="finite number"):
        NegativeAdapters.attach(pipe, {"npo": float("nan")})
    with pytest.raises(InputError, match="condition 'positive' is unknown"):
        NegativeAdapters.attach(pipe, {"npo": 1.0}, condition="positive")
    negative = NegativeAdapters.attach(pipe, {"npo": 1.0})
    with pytest.raises(InputError, match="'eta' is not attached"):
        negative.set_strength({"eta": 1.0})


def test_refuses_the_prompt_as_condition_where_prompts_are_encoded_apart() -> None:
    pipe = PIPELINES["flux"]()
    add_lora(pipe.transformer, "npo", seed=1)
    with pytest.raises(InputError, match="FluxPipeline encodes its two prompts apart"):
        NegativeAdapters.attach(pipe, {"npo": 1.0}, condition="prompt")


def test_several_adapters_need_to_be_told_apart(pipe: Any) -> None:
    add_lora(pipe.unet, "eta", seed=2)
    with pytest.raises(InputError, match=r"Say shared=\('eta',\)"):
        NegativeAdapters.attach(pipe, {"npo": 1.0, "eta": -0.5})
    with pytest.raises(InputError, match="'eta' has no weight"):
        NegativeAdapters.attach(pipe, {"npo": 1.0}, shared=("eta",))


def test_refuses_variants_of_lora() -> None:
    pipe = sd15()
    add_lora(pipe.unet, "npo", seed=1, use_dora=True)
    with pytest.raises(InputError, match=r"DoRA.*NegativeDelta"):
        NegativeAdapters.attach(pipe, {"npo": 1.0})
    assert pipe.get_active_adapters() == ["npo"]


def test_refuses_a_lora_of_the_text_encoder(pipe: Any) -> None:
    add_lora(pipe.text_encoder, "npo", seed=2, targets=("q_proj",))
    with pytest.raises(InputError, match="also changes the text_encoder"):
        NegativeAdapters.attach(pipe, {"npo": 1.0})


def test_refuses_fused_projections(pipe: Any) -> None:
    pipe.fuse_qkv_projections()
    with pytest.raises(InputError, match=r"unfuse_qkv_projections\(\) first"):
        NegativeAdapters.attach(pipe, {"npo": 1.0})
    pipe.unfuse_qkv_projections()
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        pipe.fuse_qkv_projections()
        with pytest.raises(InputError, match="fused projections"):
            sample("sd15", pipe)


def test_refuses_an_adapter_that_became_active_on_both_branches(pipe: Any) -> None:
    def activate(*_: Any) -> dict[str, Any]:
        pipe.unet.set_adapters(["npo"])
        return {}

    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        with pytest.raises(InputError, match="'npo' is active, or fused, for all rows"):
            sample("sd15", pipe, callback_on_step_end=activate)  # within the call
        with pytest.raises(InputError, match="'npo' is active, or fused, for all rows"):
            sample("sd15", pipe)
    assert pipe.get_active_adapters() == ["npo"]  # as the user left it


def test_refuses_a_fused_adapter(pipe: Any) -> None:
    pipe.fuse_lora(adapter_names=["npo"])
    with pytest.raises(InputError, match=r"unfuse_lora\(\)"):
        NegativeAdapters.attach(pipe, {"npo": 1.0})
    assert pipe.get_active_adapters() == ["npo"]
    assert "_selfnpo" not in vars(pipe.unet)


def test_refuses_a_shared_adapter_that_became_inactive(pipe: Any) -> None:
    add_lora(pipe.unet, "eta", seed=2)
    with NegativeAdapters.attach(pipe, {"npo": 1.0, "eta": -0.5}, shared=("eta",)):
        add_lora(pipe.unet, "style", seed=3)
        with pytest.raises(InputError, match="'eta' is no longer active for all rows"):
            sample("sd15", pipe)
        pipe.unet.set_adapters(["eta", "style"])
        sample("sd15", pipe)
        pipe.disable_lora()
        with pytest.raises(InputError, match="'eta' is no longer active for all rows"):
            sample("sd15", pipe)


def test_refuses_to_go_on_with_one_adapter_of_two(pipe: Any) -> None:
    add_lora(pipe.unet, "style", seed=3)
    with NegativeAdapters.attach(pipe, {"npo": 1.0, "style": 1.0}, shared=()):
        pipe.unet.delete_adapters("style")
        with pytest.raises(InputError, match="deleted or unloaded"):
            sample("sd15", pipe)


def test_refuses_an_adapter_that_was_unloaded(pipe: Any, plain: torch.Tensor) -> None:
    add_lora(pipe.unet, "style", seed=3)
    for unload in (lambda: pipe.unet.delete_adapters("npo"), pipe.unload_lora_weights):
        with NegativeAdapters.attach(pipe, {"npo" if "npo" in pipe.unet.peft_config else "style": 1.0}):
            unload()
            with pytest.raises(InputError, match="deleted or unloaded"):
                sample("sd15", pipe)
    assert torch.equal(sample("sd15", pipe), plain)


def test_refuses_another_denoiser(pipe: Any) -> None:
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        pipe.unet = sd15().unet
        with pytest.raises(InputError, match="unet was replaced"):
            sample("sd15", pipe)


def test_refuses_two_at_once(pipe: Any) -> None:
    with NegativeAdapters.attach(pipe, {"npo": 1.0}), pytest.raises(InputError, match="attached already"):
        NegativeAdapters.attach(pipe, {"npo": 1.0})
    assert all("_selfnpo" not in vars(layer) for layer in lora_layers(pipe.unet))


def assert_differs(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one - other).abs().max() > 1e-4 * other.abs().max()


def test_weights_that_have_no_branch_to_act_on_say_so_once(
    pipe: Any, plain: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    add_lora((flux := PIPELINES["flux"]()).transformer, "npo", seed=1)
    for family, some in (("sd15", pipe), ("flux", flux)):
        caplog.clear()
        with NegativeAdapters.attach(some, {"npo": 1.0}):
            sample(family, some, negative_prompt="a blue bird")
            assert "change nothing" not in caplog.text
            for _ in range(2):
                sample(family, some, scale=1.0)
        assert caplog.text.count("the negative weights change nothing: this call runs no negative branch") == 1
    caplog.clear()
    with NegativeAdapters.attach(pipe, {"npo": 1.0}, shares=(-1.0, -1.0)):
        sample("sd15", pipe, scale=1.0)
    assert caplog.text == ""
