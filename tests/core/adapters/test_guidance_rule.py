"""Rules of guidance in stock pipelines, against plain loops over whole models and against diffusers' own pipelines."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from tests.core.adapters.reference import add_lora, assert_same, delta_of, denoiser, model_with
from tests.core.adapters.test_negative_delta import offset, shifted
from tests.tiny import PIPELINES, sample, sd3, sd15, sdxl, wan
from torch import Tensor, nn

from selfnpo_core import InputError, NegativeAdapters, NegativeDelta, NegativeLayers
from selfnpo_core.adapters import GuidanceRule
from selfnpo_core.adapters.negative_rules import BetaByLevel, Switch, ThirdTerm
from selfnpo_core.adapters.rules import GuidanceInterval, Perturbed, Projected, Rescaled, Rule, ZeroStar, plain
from selfnpo_core.adapters.weakening import identity_attention, skipped_blocks
from selfnpo_core.experiments.measure import counted_rows
from selfnpo_core.schedule import NoiseSchedule

PROMPTS = ["a red fox", "two blue birds"]
SCALE = 5.0
Guided = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x, α, σ, negative, positive) → ε̂, by hand."""


@torch.no_grad()
def loop(pipe: Any, guided: Guided, positive: nn.Module, negative: nn.Module) -> Tensor:
    """`tests.tiny.sample` of the SD1.5 pipeline by hand."""
    embeds, null = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[t].sqrt()
        sigma = (1 - scheduler.alphas_cumprod[t]).sqrt()
        n, p = negative(x, t, null).sample, positive(x, t, embeds).sample
        x = scheduler.step(guided(x, alpha, sigma, n, p), t, x).prev_sample
    return x


def zero_star(x: Tensor, alpha: Tensor, sigma: Tensor, n: Tensor, p: Tensor) -> Tensor:
    """In the flow model's coordinates y = x/(α + σ), τ = σ/(α + σ), with diffusers' guider."""
    y, tau = x / (alpha + sigma), sigma / (alpha + sigma)
    velocity = [eps - (x - sigma * eps) / alpha for eps in (n, p)]
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=SCALE, zero_init_steps=0)
    guider.set_state(0, 3, torch.tensor(0))
    return y + (1 - tau) * guider.forward(velocity[1], velocity[0]).pred


def apg() -> Guided:
    buffer = MomentumBuffer(-0.5)

    def guided(x: Tensor, alpha: Tensor, sigma: Tensor, n: Tensor, p: Tensor) -> Tensor:
        x0 = [(x - sigma * eps) / alpha for eps in (n, p)]
        better = normalized_guidance(x0[1], x0[0], SCALE - 1, buffer, 0.3, 0.05 * 256**0.5, True)
        return (x - alpha * better) / sigma

    return guided


def rescaled(x: Tensor, alpha: Tensor, sigma: Tensor, n: Tensor, p: Tensor) -> Tensor:
    guided = n + SCALE * (p - n)
    scaled = guided * p.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    return 0.7 * scaled + 0.3 * guided


def between(x: Tensor, alpha: Tensor, sigma: Tensor, n: Tensor, p: Tensor) -> Tensor:
    return n + SCALE * (p - n) if 0.5 < sigma / alpha <= 3 else p


RULES: dict[str, tuple[Rule, Callable[[], Guided]]] = {
    "zero star": (ZeroStar(), lambda: zero_star),
    "apg": (Projected(eta=0.3, norm=0.05), apg),
    "rescaling": (Rescaled(), lambda: rescaled),
    "interval": (GuidanceInterval(low=0.5, high=3.0), lambda: between),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_equals_a_loop_alone_and_with_negative_weights(name: str) -> None:
    rule, by_hand = RULES[name]
    pipe = sd15()
    base, free = sample("sd15", pipe, PROMPTS), model_with("sd15", pipe.unet, {})
    with GuidanceRule.attach(pipe, rule):
        alone = sample("sd15", pipe, PROMPTS)
        assert torch.equal(sample("sd15", pipe, PROMPTS), alone)  # nothing is left over of the first call
    assert_same(alone, loop(pipe, by_hand(), free, free))
    assert (alone - base).abs().max() > 1e-3
    delta = offset(pipe.unet)
    expected = loop(pipe, by_hand(), free, shifted("sd15", delta, 1.0))
    assert (expected - alone).abs().max() > 1e-3
    for negative in (NegativeDelta, NegativeLayers):
        more = {"store": "exact"} if negative is NegativeLayers else {}
        with negative.attach(pipe, delta, **more), GuidanceRule.attach(pipe, rule):
            assert_same(sample("sd15", pipe, PROMPTS), expected)
    assert torch.equal(sample("sd15", pipe, PROMPTS), base)
    add_lora(pipe.unet, "npo", seed=1)
    expected = loop(pipe, by_hand(), free, model_with("sd15", pipe.unet, {"npo": 0.5}))
    with NegativeAdapters.attach(pipe, {"npo": 0.5}), GuidanceRule.attach(pipe, rule):
        assert_same(sample("sd15", pipe, PROMPTS), expected)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "cogvideox", "wan"])
def test_guidance_as_it_is(family: str) -> None:
    pipe = PIPELINES[family]()
    expected, off = sample(family, pipe), sample(family, pipe, scale=1.0)
    before = vars(denoiser(pipe)).keys() | vars(pipe).keys()
    with GuidanceRule.attach(pipe, plain):
        assert_same(sample(family, pipe), expected, 1e-6)
        assert torch.equal(sample(family, pipe, scale=1.0), off)
    with GuidanceRule.attach(pipe, GuidanceInterval(low=1e9, high=1e9)):  # guidance nowhere: p at every step
        assert_same(sample(family, pipe), off)
    assert vars(denoiser(pipe)).keys() | vars(pipe).keys() == before
    assert torch.equal(sample(family, pipe), expected)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "cogvideox", "wan"])
def test_rows_that_are_run(family: str) -> None:
    pipe, weak = PIPELINES[family](), identity_attention([])
    sample(family, pipe)
    second = pipe.scheduler.timesteps[1:2]
    level = NoiseSchedule.from_scheduler(pipe.scheduler).at(second, like=second)
    last_two = {"low": 0.0, "high": 1.01 * (level.sigma / level.alpha).item()}
    asked = {
        plain: 12,
        ZeroStar(first=1): 8,
        GuidanceInterval(**last_two): 6 + 4,
        Perturbed(weaken=weak, strength=1.0): 18,
        Perturbed(weaken=weak, strength=1.0, start=0.01, stop=0.5): 14,  # at the second of three
        GuidanceInterval(**last_two, rule=Perturbed(weaken=weak, strength=1.0)): 6 + 8,
    }
    for rule, expected in asked.items():
        with counted_rows(denoiser(pipe)) as rows, GuidanceRule.attach(pipe, rule):
            sample(family, pipe, PROMPTS)
        assert rows == [expected], rule


@torch.no_grad()
def wan_loop(guided: Callable[[Callable[[nn.Module, str], Tensor], float], Tensor], negative_prompt: str) -> Tensor:
    """`tests.tiny.sample` of the Wan pipeline by hand. guided: (ask(a model, branch), σ/α) → the guided velocity."""
    pipe = PIPELINES["wan"]()
    prompts = pipe.encode_prompt(PROMPTS, [negative_prompt] * 2, max_sequence_length=16, device="cpu")
    told = dict(zip(("positive", "negative"), prompts, strict=True))
    x = torch.randn((2, 16, 2, 2, 2), generator=torch.Generator().manual_seed(1))
    pipe.scheduler.set_timesteps(3)
    for t in pipe.scheduler.timesteps:

        def ask(model: nn.Module, branch: str, x: Tensor = x, t: Tensor = t) -> Tensor:
            return model(hidden_states=x, timestep=t.expand(2), encoder_hidden_states=told[branch])[0]

        sigma = float(t) / 1000
        x = pipe.scheduler.step(guided(ask, sigma / (1 - sigma) if sigma < 1 else float("inf")), t, x)[0]
    return x


@pytest.mark.parametrize("full", [False, True])
def test_branches_that_are_asked_one_after_the_other(full: bool) -> None:
    """Rules that ask the negative weights, with two clips and a negative prompt, by hand; guidance off, nothing."""
    pipe, plain_model = PIPELINES["wan"](), denoiser(PIPELINES["wan"]())
    add_lora(pipe.transformer, "npo", seed=1)
    delta, weak = delta_of(pipe.transformer, "npo"), model_with("wan", pipe.transformer, {"npo": 0.6})
    half = model_with("wan", pipe.transformer, {"npo": 0.3})
    if full:
        pipe = PIPELINES["wan"]()
    call: dict[str, Any] = {"prompt": PROMPTS, "negative_prompt": ["ugly", "ugly"]}
    off = sample("wan", PIPELINES["wan"](), **call, scale=1.0)

    def cfg(n: Tensor, p: Tensor) -> Tensor:
        return n + SCALE * (p - n)

    def third(ask: Any, _level: float) -> Tensor:
        p = ask(plain_model, "positive")
        return cfg(ask(plain_model, "negative"), p) + 0.7 * (p - ask(weak, "positive"))

    def switched(ask: Any, level: float) -> Tensor:
        p = ask(plain_model, "positive")
        return cfg(ask(plain_model, "negative") if level > 20 else ask(weak, "positive"), p)

    def by_level(ask: Any, level: float) -> Tensor:
        return cfg(ask(weak if level > 20 else half, "negative"), ask(plain_model, "positive"))

    def as_it_is(ask: Any, _level: float) -> Tensor:
        return cfg(ask(weak, "negative"), ask(plain_model, "positive"))

    rules: list[tuple[Rule, Any]] = [
        (ThirdTerm(weight=0.7), third),
        (Switch(switch=20.0), switched),
        (BetaByLevel(knots=((20.0, 0.5), (20.0, 1.0))), by_level),
        (plain, as_it_is),
    ]
    attach: Any = NegativeDelta.attach(pipe, delta, beta=0.6) if full else NegativeAdapters.attach(pipe, {"npo": 0.6})
    with torch.no_grad(), attach:
        for rule, guided in rules:
            with GuidanceRule.attach(pipe, rule):
                assert_same(sample("wan", pipe, **call), wan_loop(guided, "ugly"))
                assert torch.equal(sample("wan", pipe, **call, scale=1.0), off)
    assert {"forward", "cache_context"}.isdisjoint(vars(pipe.transformer))


def test_a_timestep_for_each_token() -> None:
    """Wan 2.2 TI2V-5B's, which are all the same where no picture is given."""
    pipe, size = wan("5b"), {"height": 32, "width": 32}
    expected = sample("wan", pipe, **size)
    with GuidanceRule.attach(pipe, plain):
        assert_same(sample("wan", pipe, **size), expected, 1e-6)
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "timestep": kwargs["timestep"] * torch.arange(2)}), with_kwargs=True
    )
    with refused("one timestep a row"), GuidanceRule.attach(pipe, plain):
        sample("wan", pipe, **size)


def test_experts_and_conditioned_samples_are_refused() -> None:
    pipe = PIPELINES["wan"]()
    pipe.register_modules(transformer_2=PIPELINES["wan"]().transformer)
    with refused("is for one denoiser, not transformer and transformer_2 of WanPipeline"):
        GuidanceRule.attach(pipe, plain)
    pipe = PIPELINES["wan"]()
    pipe.transformer.register_to_config(in_channels=36)
    with refused("gives its denoiser more than the sample"):
        GuidanceRule.attach(pipe, plain)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("sd15", diffusers.StableDiffusionPAGPipeline), ("sdxl", diffusers.StableDiffusionXLPAGPipeline)],
)
def test_perturbed_attention_is_that_of_diffusers(family: str, kind: Any) -> None:
    pipe = PIPELINES[family]()
    layers = [f"{name}.attn1" for name in _blocks(pipe.unet) if name.startswith("mid_block")]
    plain_guidance = sample(family, pipe, PROMPTS)
    with GuidanceRule.attach(pipe, Perturbed(weaken=identity_attention(layers), strength=3.0)):
        ours = sample(family, pipe, PROMPTS)
    assert (ours - plain_guidance).abs().max() > 1e-3
    given = {name: getattr(pipe, name) for name in pipe.components if name in kind._get_signature_keys(kind)[0]}
    theirs = kind(**given, **({"requires_safety_checker": False} if family == "sd15" else {"add_watermarker": False}))
    theirs.set_pag_applied_layers("mid")
    assert_same(ours, sample(family, theirs, PROMPTS, pag_scale=3.0))


def test_skipped_layers_are_those_of_diffusers() -> None:
    pipe = sd3()
    plain_guidance = sample("sd3", pipe)
    rule = Perturbed(weaken=skipped_blocks({"transformer_blocks": (0,)}), strength=2.8, start=0.01, stop=0.9)
    with GuidanceRule.attach(pipe, rule):
        ours = sample("sd3", pipe)
    assert (ours - plain_guidance).abs().max() > 1e-3
    asked = {"skip_guidance_layers": [0], "skip_layer_guidance_scale": 2.8, "skip_layer_guidance_stop": 0.9}
    assert_same(ours, sample("sd3", pipe, **asked))


def test_a_flow_model_is_given_the_guider_of_diffusers() -> None:
    """CFG-Zero* on the model that it was made for, with a zero velocity at the first step."""
    pipe = sd3()
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=SCALE, zero_init_steps=1)
    steps = iter(range(3))

    def theirs(step: Any) -> tuple[Tensor, Tensor]:
        negative, positive = step.both()
        guider.set_state(next(steps), 3, torch.tensor(0))
        guided = guider.forward(positive, negative).pred
        return guided, guided

    with GuidanceRule.attach(pipe, theirs):
        expected = sample("sd3", pipe)
    with GuidanceRule.attach(pipe, ZeroStar(first=1)):
        assert_same(sample("sd3", pipe), expected)


@pytest.mark.parametrize("joint", [False, True])
def test_identity_attention_by_hand(joint: bool) -> None:
    """V through the output projection; words in front of a video go on attending to everything."""
    pipe = PIPELINES["cogvideox" if joint else "sd15"]()
    model, name = denoiser(pipe), "transformer_blocks.1.attn1"
    if not joint:
        name = next(f"{block}.attn1" for block in _blocks(model))
    layer = model.get_submodule(name)
    x, words = torch.randn(2, 6, layer.to_q.in_features), torch.randn(2, 3, layer.to_q.in_features)
    before = layer(x, words) if joint else layer(x)
    with identity_attention([name])(model), torch.no_grad():
        after = layer(x, words) if joint else layer(x)
    expected = layer.to_out[0](layer.to_v(x)) / layer.rescale_output_factor
    if layer.residual_connection:
        expected = expected + x
    assert_same(after[0] if joint else after, expected)
    if joint:
        assert_same(after[1], before[1])
    assert "forward" not in vars(layer)


def test_skipped_blocks_by_hand() -> None:
    pipe = PIPELINES["cogvideox"]()
    model = pipe.transformer
    inputs = {
        "hidden_states": torch.randn(2, 2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 16, 32),
        "timestep": torch.tensor([500, 500]),
    }
    with torch.no_grad():
        with skipped_blocks({"transformer_blocks": (1,)})(model):
            ours = model(**inputs).sample
        del model.transformer_blocks[1]
        assert torch.equal(ours, model(**inputs).sample)


def test_autoguidance_is_a_negative_delta_with_the_prompt() -> None:
    """Both branches see the prompt, the negative one with an earlier state of the model (2406.02507)."""
    pipe, free = sd15(), sd15().unet
    delta = offset(pipe.unet)
    earlier = shifted("sd15", delta, 1.0)
    null = pipe.encode_prompt(PROMPTS, "cpu", 1, True)[0]

    def prompted(x: Tensor, t: Tensor, _null: Tensor) -> Any:
        return earlier(x, t, null)

    expected = loop(pipe, lambda x, a, s, n, p: n + SCALE * (p - n), free, prompted)  # type: ignore[arg-type]
    with NegativeDelta.attach(pipe, delta, condition="prompt"):
        assert_same(sample("sd15", pipe, PROMPTS), expected)


def test_the_order_of_attaching_is_kept() -> None:
    pipe = sd15()
    delta = offset(pipe.unet)
    base = sample("sd15", pipe)
    negative = NegativeDelta.attach(pipe, delta)
    rule = GuidanceRule.attach(pipe, Rescaled())
    with pytest.raises(InputError, match="attached after the negative weights"):
        negative.detach()
    rule.detach()
    negative.detach()
    with GuidanceRule.attach(pipe, Rescaled()):
        with pytest.raises(InputError, match="to be attached last"):
            NegativeDelta.attach(pipe, delta)
        with pytest.raises(InputError, match="to be attached last"):
            GuidanceRule.attach(pipe, Rescaled())
    assert torch.equal(sample("sd15", pipe), base)


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(InputError, match=words):
        yield


def test_what_cannot_be_done_is_refused() -> None:
    with refused(r"FluxPipeline does not run \[negative, positive\] as one batch"):
        GuidanceRule.attach(PIPELINES["flux"](), plain)
    pipe = sd15()
    compiled = sd15()
    compiled.unet = torch.compile(compiled.unet)
    with refused("compiled denoiser"):
        GuidanceRule.attach(compiled, plain)
    for weaken, words in (
        (identity_attention(["mid_block.attentions.9"]), "no layer 'mid_block.attentions.9'"),
        (identity_attention(["mid_block.resnets.0"]), "no layer of self-attention"),
        (identity_attention([next(f"{b}.attn2" for b in _blocks(pipe.unet))]), "no layer of self-attention"),
        (skipped_blocks({"mid_block.resnets": (0,)}), "no transformer block"),
    ):
        with refused(words), GuidanceRule.attach(pipe, Perturbed(weaken=weaken, strength=1.0)):
            sample("sd15", pipe)
    assert torch.equal(sample("sd15", pipe), sample("sd15", sd15()))
    video = PIPELINES["cogvideox"]()
    with refused("one guidance scale at all steps"), GuidanceRule.attach(video, Rescaled()):
        sample("cogvideox", video, use_dynamic_cfg=True)
    layer = next(f"{block}.attn1" for block in _blocks(pipe.unet))
    pipe.unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    rule = Perturbed(weaken=identity_attention([layer]), strength=1.0)
    with refused("not torch's own"), GuidanceRule.attach(pipe, rule):
        sample("sd15", pipe)


def test_a_lora_of_the_negative_rows_is_not_in_the_third_forward() -> None:
    pipe = sdxl()
    add_lora(pipe.unet, "npo", seed=1)
    delta = delta_of(pipe.unet, "npo")
    layers = [f"{name}.attn1" for name in _blocks(pipe.unet)]
    rule = Perturbed(weaken=identity_attention(layers), strength=2.0)
    with NegativeAdapters.attach(pipe, {"npo": 0.5}), GuidanceRule.attach(pipe, rule):
        ours = sample("sdxl", pipe, PROMPTS)
    other = sdxl()
    with NegativeDelta.attach(other, delta, beta=0.5), GuidanceRule.attach(other, rule):
        assert_same(sample("sdxl", other, PROMPTS), ours)


def _blocks(unet: nn.Module) -> list[str]:
    return [name for name, module in unet.named_modules() if type(module).__name__ == "BasicTransformerBlock"]
