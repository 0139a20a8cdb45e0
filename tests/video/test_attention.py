"""Our joint attention against diffusers' own, and what happens where a kernel cannot run."""

import logging
import subprocess
import sys

import pytest
import torch
from tests.tiny import cogvideox

from selfnpo_core.errors import InputError
from selfnpo_video import attention
from selfnpo_video.positions import rotary_positions


def inputs(transformer, kind):
    g = torch.Generator().manual_seed(0)
    frames = 4 if kind == "1.5" else 3
    return {
        "hidden_states": torch.randn((2, frames, 4, 8, 8), generator=g),
        "encoder_hidden_states": torch.randn((2, 16, transformer.config.text_embed_dim), generator=g),
        "timestep": torch.tensor([10, 700]),
        "image_rotary_emb": rotary_positions(transformer, frames, 8, 8),
        "return_dict": False,
    }


@pytest.mark.parametrize("kind", ["2b", "5b", "1.5"])
@torch.no_grad()
def test_our_processor_equals_diffusers(kind):
    transformer = cogvideox(kind).transformer
    given = inputs(transformer, kind)
    expected = transformer(**given)[0]
    transformer.set_attn_processor(attention.JointAttention(attention.sdpa))
    torch.testing.assert_close(transformer(**given)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["xformers", "flash"])
def test_a_kernel_that_cannot_run_is_replaced_with_one_line(name, caplog):
    transformer = cogvideox().transformer
    with caplog.at_level(logging.INFO, logger="selfnpo_video"):
        chosen = attention.use_attention(transformer, name, torch.device("cpu"), torch.float32)
    assert chosen == "sdpa"
    assert len(caplog.records) == 1
    assert f"{name} cannot run here" in caplog.text
    assert type(transformer.transformer_blocks[0].attn1.processor).__name__ == "CogVideoXAttnProcessor2_0"


def test_a_kernel_that_runs_is_used(monkeypatch):
    """The choice is made by a real call, not by what is installed."""
    transformer = cogvideox().transformer
    calls = []
    monkeypatch.setattr(attention, "probe", lambda kernel, device, dtype: calls.append(kernel))
    assert attention.use_attention(transformer, "xformers", torch.device("cpu"), torch.float32) == "xformers"
    assert calls == [attention.memory_efficient]
    assert transformer.transformer_blocks[1].attn1.processor.kernel is attention.memory_efficient


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="auto, sdpa, xformers, flash"):
        attention.use_attention(cogvideox().transformer, "fast", torch.device("cpu"), torch.float32)


@pytest.mark.slow
def test_the_command_says_what_attention_was_chosen(tmp_path):
    cogvideox().save_pretrained(tmp_path / "model")
    size = ["--frames", "9", "--height", "32", "--width", "32", "--steps", "1", "--guidance-scale", "1"]
    command = ["--model", tmp_path / "model", "--prompt", "x", *size, "--output", tmp_path / "clips"]
    asked = [sys.executable, "-m", "selfnpo_video.cli", "sample", *map(str, command), "--attention", "xformers"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert done.stderr.count("attention: sdpa (xformers cannot run here: it needs a CUDA GPU, and this is cpu)") == 1
