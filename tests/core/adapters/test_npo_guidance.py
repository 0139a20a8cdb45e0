"""`NPOGuidance` in modular pipelines against stock pipelines with `NegativeAdapters`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3ModularPipeline, StableDiffusionXLModularPipeline, WanModularPipeline
from diffusers.modular_pipelines import StableDiffusion3AutoBlocks, StableDiffusionXLAutoBlocks, WanBlocks
from diffusers.modular_pipelines.wan import encoders as wan_encoders
from tests.core.adapters.reference import add_lora, denoiser
from tests.tiny import PIPELINES, sample

from selfnpo_core import InputError, NegativeAdapters
from selfnpo_core.adapters import NPOGuidance

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
