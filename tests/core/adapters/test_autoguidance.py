"""Autoguidance against two whole models, each with its own text encoder."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.adapters.reference import assert_same
from tests.tiny import PIPELINES, sample, sd3, sd15

from selfnpo_core import InputError, NegativeDelta
from selfnpo_core.adapters.autoguidance import autoguidance, load_earlier

PROMPTS = ["a red fox", "two blue birds"]
SCALE = 5.0


def other(pipe: Any) -> Any:
    """An earlier state: denoiser and text encoder moved by a tenth."""
    generator = torch.Generator().manual_seed(3)
    for part in (pipe.unet, pipe.text_encoder):
        with torch.no_grad():
            for parameter in part.parameters():
                parameter += 0.1 * parameter.std().nan_to_num(0.1) * torch.randn(parameter.shape, generator=generator)
    return pipe


@torch.no_grad()
def test_equals_two_models() -> None:
    pipe, earlier = sd15(), other(sd15())
    before = sample("sd15", pipe, PROMPTS)
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(3)
    wanted, seen = (one.encode_prompt(PROMPTS, "cpu", 1, True)[0] for one in (pipe, earlier))
    assert (wanted - seen).abs().max() > 1e-2
    for t in scheduler.timesteps:
        weak = earlier.unet(x, t, seen).sample
        x = scheduler.step(weak + SCALE * (pipe.unet(x, t, wanted).sample - weak), t, x).prev_sample
    with autoguidance(pipe, earlier):
        assert_same(sample("sd15", pipe, PROMPTS), x)
        off = sample("sd15", pipe, PROMPTS, scale=1.0)
    assert torch.equal(sample("sd15", pipe, PROMPTS), before)
    assert torch.equal(sample("sd15", pipe, PROMPTS, scale=1.0), off)


def test_with_the_same_text_encoder_it_is_a_negative_delta_asked_with_the_prompt() -> None:
    pipe, earlier = PIPELINES["cogvideox"](), PIPELINES["cogvideox"]()
    delta = {name: 0.05 * torch.randn(p.shape) for name, p in pipe.transformer.named_parameters()}
    with torch.no_grad():
        for name, parameter in earlier.transformer.named_parameters():
            parameter += delta[name]
    with NegativeDelta.attach(pipe, delta, condition="prompt"):
        expected = sample("cogvideox", pipe)
    with autoguidance(pipe, earlier):
        assert_same(sample("cogvideox", pipe), expected)


def test_from_a_folder(tmp_path: Path) -> None:
    pipe, earlier = sd15(), other(sd15())
    earlier.save_pretrained(tmp_path / "earlier")
    with autoguidance(pipe, earlier):
        expected = sample("sd15", pipe)
    with autoguidance(pipe, load_earlier(pipe, tmp_path / "earlier")):
        assert torch.equal(sample("sd15", pipe), expected)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no diffusers folder"):
            load_earlier(pipe, folder)
    (tmp_path / "earlier" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_earlier(pipe, tmp_path / "earlier")


def test_another_model_is_refused() -> None:
    pipe = sd15()
    wide = sd15()
    wide.unet.conv_in = torch.nn.Conv2d(4, 16, 3, padding=1)
    for earlier in (sd3(), wide):
        with pytest.raises(InputError, match="another kind or size"), autoguidance(pipe, earlier):
            pass
    flux = PIPELINES["flux"]()
    with pytest.raises(InputError, match="encodes its two prompts apart"), autoguidance(flux, PIPELINES["flux"]()):
        pass
    with autoguidance(pipe, sd15()), pytest.raises(InputError, match="give the prompt as text"):
        sample("sd15", pipe, None, prompt_embeds=torch.zeros(1, 77, 32))
