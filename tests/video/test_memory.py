"""What a clip will take: the estimate against what is measured, and the refusal of what does not fit."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny import cogvideox

from selfnpo_core.errors import InputError
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_video import memory
from selfnpo_video.demo.build import denoiser, vae
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_pipeline
from selfnpo_video.shapes import ClipSize
from selfnpo_video.streaming import decode_stream

CPU = torch.device("cpu")
SIZE = ClipSize(frames=9, height=64, width=64)
OWN = ClipSize(frames=9, height=32, width=32)
"""Of the demo's model."""


def sampler(folder: Path, **options) -> memory.Sampler:
    base = find_base(str(folder))
    pipe = load_pipeline(base)
    assert base.transformer.num_layers == pipe.transformer.config.num_layers
    assert base.vae.latent_channels == pipe.vae.config.latent_channels
    return memory.Sampler(base=base, **{"rows": 2, "dtype": torch.float32, "device": CPU, **options})


def test_peaks_of_tensors_are_those_that_can_be_counted():
    assert peak_tensor_bytes(lambda: torch.zeros(1_000_000) + 1) == pytest.approx(8_000_000, rel=0.01)

    def frees_first():
        held = torch.zeros(1_000_000)
        del held
        return torch.zeros(500_000)

    assert peak_tensor_bytes(frees_first) == pytest.approx(4_000_000, rel=0.01)


@pytest.mark.slow
def test_the_estimate_is_near_what_is_measured(small):
    autoencoder, transformer = vae.build().eval(), denoiser.build_transformer().eval()
    made = sampler(small, rows=4)
    made = replace(made, base=replace(made.base, transformer=transformer.config, vae=autoencoder.config))
    asked = made.need(OWN)
    x, text, t = torch.randn(4, 3, 16, 8, 8), torch.randn(4, 16, 96), torch.full((4,), 500)
    forward = peak_tensor_bytes(
        lambda: transformer(hidden_states=x, encoder_hidden_states=text, timestep=t, return_dict=False)
    )
    decode = peak_tensor_bytes(lambda: [None for _ in decode_stream(autoencoder, x[:1])])
    assert asked.denoising == pytest.approx(forward, rel=0.3)
    assert asked.decoding == pytest.approx(decode, rel=0.3)
    autoencoder.enable_tiling()
    tiled = peak_tensor_bytes(lambda: [None for _ in decode_stream(autoencoder, x[:1])])
    assert replace(made, tiling=True).need(OWN).decoding == pytest.approx(tiled, rel=0.3)
    long = x[:1].repeat(1, 13, 1, 1, 1)
    grows = peak_tensor_bytes(lambda: [None for _ in decode_stream(autoencoder, long)]) - tiled
    size = replace(OWN, frames=4 * 38 + 1)
    assert replace(made, tiling=True).need(size).decoding - asked_tiled(made) == pytest.approx(grows, rel=0.4)


def asked_tiled(made: memory.Sampler) -> int:
    return replace(made, tiling=True).need(OWN).decoding


def test_weights_are_counted_from_the_headers(small):
    pipe = load_pipeline(find_base(str(small)))
    sizes = {name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("transformer", "vae")}
    asked = sampler(small, dtype=torch.bfloat16).need(SIZE)
    assert (asked.transformer, asked.vae) == (2 * sizes["transformer"], 2 * sizes["vae"])
    assert asked.peak == asked.transformer + asked.vae + asked.text_encoder + max(asked.denoising, asked.decoding)
    gpu = sampler(small, dtype=torch.bfloat16, device=torch.device("cuda")).need(SIZE)  # one component at a time
    assert gpu.peak == max(gpu.transformer + gpu.denoising, gpu.vae + gpu.decoding, gpu.text_encoder) < asked.peak
    full = sampler(small, dtype=torch.bfloat16, full_negative=True).need(SIZE)
    assert full.transformer == 2 * asked.transformer


LONG, LARGE = ClipSize(frames=8001, height=64, width=64), ClipSize(frames=9, height=512, width=512)


@pytest.mark.parametrize(
    ("options", "size", "given_up", "hint"),
    [
        ({"rows": 32}, LONG, {"rows": 2}, "--batch-size 1"),
        ({}, LARGE, {"tiling": True}, "--tiling"),
        ({"rows": 512}, LARGE, {"rows": 2, "tiling": True}, "--batch-size 1 --tiling"),
        ({"rows": 4}, LONG, None, r"--frames (\d+) --height 64 --width 64 --batch-size 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(small, monkeypatch, options, size, given_up, hint):
    made = sampler(small, **options)
    monkeypatch.setattr(memory, "available", lambda device: made.need(size).peak)
    made.check(size)
    if given_up is None:
        small_enough = replace(made, rows=2).need(replace(size, frames=4001)).peak
    else:
        small_enough = replace(made, **given_up).need(size).peak
    monkeypatch.setattr(memory, "available", lambda device: small_enough)
    with pytest.raises(InputError, match=rf"takes about .* GiB free: use {hint}$") as refused:
        made.check(size)
    if given_up is None:  # what is advised fits, and one step more would not
        frames = int(re.search(r"--frames (\d+)", str(refused.value))[1])
        assert frames == 4001
        replace(made, rows=2).check(replace(size, frames=frames))
        with pytest.raises(InputError):
            replace(made, rows=2).check(replace(size, frames=frames + 8))


def test_a_window_makes_long_clips_fit(small, monkeypatch):
    short = sampler(small).need(ClipSize(frames=17, height=64, width=64)).peak
    monkeypatch.setattr(memory, "available", lambda device: short)
    sampler(small, window=17).check(LONG)


def test_nothing_would_fit(small, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(InputError, match="use another device"):
        sampler(small).check(LARGE)


def test_a_model_of_one_size_is_told_so_by_its_memory(tmp_path, monkeypatch):
    cogvideox("5b-i2v").save_pretrained(tmp_path)
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(InputError, match=r"takes about .* use another device"):
        sampler(tmp_path).check(SIZE)


def test_on_a_gpu_the_estimate_is_a_warning_unless_not_even_the_weights_fit(small, monkeypatch, caplog):
    made = sampler(small, device=torch.device("cuda"))
    monkeypatch.setattr(memory, "available", lambda device: made.need(SIZE).weights)
    made.check(SIZE)
    assert "takes about" in caplog.text
    monkeypatch.setattr(memory, "available", lambda device: made.need(SIZE).weights - 1)
    with pytest.raises(InputError, match="takes about"):
        made.check(SIZE)
