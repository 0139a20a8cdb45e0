"""`NPOGuidance` in modular pipelines against stock pipelines with `NegativeAdapters`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3ModularPipeline, StableDiffusionXLModularPipeline, WanModularPipeline
from diffusers.modular_pipelines import StableDiffusion3AutoBlocks, StableDiffusionXLAutoBlocks, WanBlocks
from diffusers.modular_pipelines.wan import encoders as wan_encoders
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tests.core.adapters.reference import add_lora, delta_of, denoiser
from tests.tiny import PIPELINES, sample

from selfnpo_core import InputError, NegativeAdapters, NpoRule, attach_npo
from selfnpo_core.adapters import NPOGuidance
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.system.files import write_json
from selfnpo_core.weights.npo_folder import NpoConfig, Recommended

MODULAR: dict[str, Any] = {
    "sdxl": (StableDiffusionXLAutoBlocks, StableDiffusionXLModularPipeline),
    "sd3": (StableDiffusion3AutoBlocks, StableDiffusion3ModularPipeline),
    "wan": (WanBlocks, WanModularPipeline),
}
CALLS: dict[str, Any] = {
    "sdxl": {"height": 16, "width": 16},
    "sd3": {"height": 32, "width": 32, "negative_prompt": ""},  # without one, its modular pipeline does not guide
    "wan": {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16},
}
STEPS = 3


def modular(family: str, stock: Any, guider: Any) -> Any:
    blocks, kind = MODULAR[family]
    pipe = kind(blocks=blocks())
    pipe.update_components(**{name: part for name, part in stock.components.items() if part is not None}, guider=guider)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(family: str, pipe: Any, **call: Any) -> torch.Tensor:
    call = {**CALLS[family], "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(1), **call}
    output: torch.Tensor = pipe(prompt="a red fox", output="latents", **call)
    return output


@pytest.mark.parametrize("family", MODULAR)
def test_equals_the_stock_pipeline(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan_encoders, "basic_clean", str.strip)  # the modular one wants ftfy, the stock one does not
    stock, rescale = PIPELINES[family](), 0.7 if family == "sdxl" else 0.0
    model = denoiser(stock)
    targets = ("to_q", "to_v")
    add_lora(model, "npo", seed=1, targets=targets)
    add_lora(model, "eta", seed=2, targets=targets)
    model.set_adapters(["eta"], [0.8])
    weights = {"npo": 0.5, "eta": -0.6}
    call = {"guidance_rescale": rescale} if rescale else {}
    with NegativeAdapters.attach(stock, weights, shared=("eta",)):
        expected = sample(family, stock, scale=5.0, **_longer(family), **call)
    plain = sample(family, stock, scale=5.0, **_longer(family), **call)
    guider = NPOGuidance(weights, shared=("eta",), guidance_scale=5.0, guidance_rescale=rescale)
    before = {n: (m._active_adapter, dict(m.scaling)) for n, m in model.named_modules() if hasattr(m, "scaling")}
    output = drawn(family, modular(family, stock, guider))
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-2
    after = {n: (m._active_adapter, dict(m.scaling)) for n, m in model.named_modules() if hasattr(m, "scaling")}
    assert before == after


def _longer(family: str) -> dict[str, Any]:
    """The modular pipeline's default length of T5's tokens."""
    return {"max_sequence_length": 256} if family == "sd3" else {}


def test_an_adapter_just_loaded_acts_on_the_negative_branch_only() -> None:
    stock = PIPELINES["sdxl"]()
    add_lora(stock.unet, "npo", seed=1)  # active, as loading leaves it
    with NegativeAdapters.attach(stock, {"npo": 1.0}):
        expected = sample("sdxl", stock, scale=4.0)
    output = drawn("sdxl", modular("sdxl", stock, NPOGuidance({"npo": 1.0}, guidance_scale=4.0)))
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


def test_the_configuration_comes_back(tmp_path: Path) -> None:
    guider = NPOGuidance({"npo": 0.5, "eta": -0.5}, shared=("eta",), guidance_scale=6.0, stop=0.8)
    guider.save_pretrained(tmp_path)
    again = NPOGuidance.from_pretrained(tmp_path)
    assert (again._weights, again._shared) == ({"npo": 0.5, "eta": -0.5}, {"eta"})
    assert (again.guidance_scale, again._stop) == (6.0, 0.8)
    assert guider.new(guidance_scale=3.0)._weights == guider._weights


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="'eta' has no weight"):
        NPOGuidance({"npo": 1.0}, shared=("eta",))
    with pytest.raises(InputError, match="give a finite number"):
        NPOGuidance({"npo": float("nan")})
    stock = PIPELINES["sdxl"]()
    with pytest.raises(InputError, match="no LoRA named 'npo', but none at all"):
        drawn("sdxl", modular("sdxl", stock, NPOGuidance({"npo": 1.0})))


@pytest.fixture(scope="module")
def npo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's npo folder without its npo_config.json."""
    stock, folder = PIPELINES["sdxl"](), tmp_path_factory.mktemp("run") / "npo"
    add_lora(stock.unet, "npo", seed=1)
    layers, metadata = (
        get_peft_model_state_dict(stock.unet, adapter_name="npo"),
        stock.unet.peft_config["npo"].to_dict(),
    )
    stock.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata)
    return folder


def recommend(folder: Path, recommended: Recommended, train: str = "lora", **config: Any) -> None:
    of_base = {"family": "sdxl", "base_model": "tiny", "base_hash": weights_hash(PIPELINES["sdxl"]().unet)}
    written = NpoConfig(**of_base, train=train, rank=4, recipe={}, recommended=recommended, **config)
    write_json(folder / "npo_config.json", written.model_dump(mode="json", by_alias=True))


def test_what_is_not_given_is_as_recommended(npo: Path) -> None:
    recommend(npo, Recommended(beta=0.5, guidance_scale=(3.0, 5.0)))
    stock = PIPELINES["sdxl"]()
    with attach_npo(stock, npo):
        expected = sample("sdxl", stock, scale=4.0)
    stock.load_lora_weights(npo, adapter_name="npo")
    guider = NPOGuidance.from_npo(npo.parent)
    torch.testing.assert_close(drawn("sdxl", modular("sdxl", stock, guider)), expected, atol=1e-4, rtol=1e-4)
    given = NPOGuidance.from_npo(npo, adapter="mine", beta=0.2, guidance_scale=6.0, guidance_rescale=0.7, stop=0.5)
    assert (given._weights, given.guidance_scale, given.guidance_rescale) == ({"mine": 0.2}, 6.0, 0.7)
    (npo / "npo_config.json").unlink()
    assert NPOGuidance.from_npo(npo).guidance_scale == NPOGuidance().guidance_scale


RULES = [
    NpoRule(name="third", weight=0.5),
    NpoRule(name="switch", switch=1.0),
    NpoRule(name="neon", weight=0.3),
    NpoRule(name="neon_both", weight=0.3),
    NpoRule(beta_knots=((0.3, 0.0), (0.3, 1.0))),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_recommended_rule_that_it_does_not_know_is_refused(npo: Path, rule: NpoRule) -> None:
    recommend(npo, Recommended(rule=rule))
    with pytest.raises(InputError, match=f"recommends rule {rule.name}.*: attach_npo") as error:
        NPOGuidance.from_npo(npo)
    assert "\n" not in str(error.value)
    assert NPOGuidance.from_npo(npo, rule=NpoRule())._weights == {"npo": 1.0}
    recommend(npo, Recommended())
    with pytest.raises(InputError, match=f"asked for is rule {rule.name}"):
        NPOGuidance.from_npo(npo, rule=rule)


def test_another_condition_and_an_offset_of_all_weights_are_refused(npo: Path, tmp_path: Path) -> None:
    recommend(npo, Recommended(beta=0.5), negative_condition="prompt")
    with pytest.raises(InputError, match="is to be asked under the prompt, and NPOGuidance asks under the null"):
        NPOGuidance.from_npo(npo)
    assert NPOGuidance.from_npo(npo, condition="null")._weights == {"npo": 0.5}
    stock = PIPELINES["sdxl"]()
    add_lora(stock.unet, "npo", seed=1)
    save_file(delta_of(stock.unet, "npo"), tmp_path / "delta.safetensors")
    recommend(tmp_path, Recommended(), train="full")
    with pytest.raises(InputError, match="an offset of all weights, which NPOGuidance does not put in"):
        NPOGuidance.from_npo(tmp_path)
