"""What a clip will take: the estimate against what is measured, and the refusal of what does not fit."""

from pathlib import Path

import pytest
import torch

from selfnpo_core.errors import InputError
from selfnpo_core.profiling import peak_tensor_bytes
from selfnpo_video import memory
from selfnpo_video.cogvideox import load_pipeline, transformer_config, vae_config
from selfnpo_video.demo.build import denoiser, vae
from selfnpo_video.models import find_source
from selfnpo_video.shapes import ClipSize
from selfnpo_video.streaming import decode_stream

CPU = torch.device("cpu")
SIZE = ClipSize(frames=9, height=64, width=64)


def configs(folder: Path):
    source, pipe = find_source(str(folder)), load_pipeline(str(folder))
    assert transformer_config(source)["num_layers"] == pipe.transformer.config.num_layers
    assert vae_config(source)["latent_channels"] == pipe.vae.config.latent_channels
    return pipe.transformer.config, pipe.vae.config


def test_peaks_of_tensors_are_those_that_can_be_counted():
    assert peak_tensor_bytes(lambda: torch.zeros(1_000_000) + 1) == pytest.approx(8_000_000, rel=0.01)

    def frees_first():
        held = torch.zeros(1_000_000)
        del held
        return torch.zeros(500_000)

    assert peak_tensor_bytes(frees_first) == pytest.approx(4_000_000, rel=0.01)


def test_the_estimate_is_near_what_is_measured(small):
    autoencoder, transformer = vae.build().eval(), denoiser.build_transformer().eval()
    asked = memory.need(small, transformer.config, autoencoder.config, SIZE, rows=4, dtype=torch.float32, device=CPU)
    x, text, t = torch.randn(4, 3, 8, 8, 8), torch.randn(4, 16, 96), torch.full((4,), 500)
    forward = peak_tensor_bytes(
        lambda: transformer(hidden_states=x, encoder_hidden_states=text, timestep=t, return_dict=False)
    )
    decode = peak_tensor_bytes(lambda: [None for _ in decode_stream(autoencoder, x[:1])])
    assert asked.denoising == pytest.approx(forward, rel=0.3)
    assert asked.decoding == pytest.approx(decode, rel=0.3)


def test_weights_are_counted_from_the_headers(small):
    transformer, autoencoder = configs(small)
    pipe = load_pipeline(str(small))
    numbers = sum(p.numel() for part in (pipe.transformer, pipe.vae, pipe.text_encoder) for p in part.parameters())
    asked = memory.need(small, transformer, autoencoder, SIZE, rows=2, dtype=torch.bfloat16, device=CPU)
    assert asked.weights == pytest.approx(2 * numbers, rel=0.05)
    on_gpu = memory.need(
        small, transformer, autoencoder, SIZE, rows=2, dtype=torch.bfloat16, device=torch.device("cuda")
    )
    assert on_gpu.weights < asked.weights  # one component at a time


def test_what_does_not_fit_is_refused_with_what_would(small, monkeypatch):
    transformer, autoencoder = configs(small)

    def check(size, free, rows=2, **more):
        monkeypatch.setattr(memory, "available", lambda device: free)
        memory.check(small, transformer, autoencoder, size, rows=rows, dtype=torch.float32, device=CPU, **more)

    def peak(size, rows=2):
        return memory.need(small, transformer, autoencoder, size, rows=rows, dtype=torch.float32, device=CPU)

    long = ClipSize(frames=8001, height=64, width=64)
    check(long, peak(long).peak)
    with pytest.raises(InputError, match=r"8001×64×64 takes about .* GiB free: use --frames \d+ --height 64"):
        check(long, peak(long).peak - 1)
    many = peak(long, rows=32)
    assert many.denoising > many.decoding
    with pytest.raises(InputError, match="use --batch-size 1"):
        check(long, many.peak - 1, rows=32)
    check(long, peak(ClipSize(frames=17, height=64, width=64)).peak, window=17)
    short = ClipSize(frames=9, height=512, width=512)
    assert peak(short).decoding > peak(short).denoising
    with pytest.raises(InputError, match="use --tiling"):
        check(short, peak(short).peak - 1)
    check(short, peak(short).peak - 1, tiling=True)
    with pytest.raises(InputError, match="another device"):
        check(short, 1000)
