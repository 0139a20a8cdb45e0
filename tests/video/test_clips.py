"""From prompts and seeds to latents and frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from selfnpo_video.clips import Settings, draw, latent_clips, watched
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_pipeline
from selfnpo_video.shapes import ClipSize

PROMPTS, SEEDS = ["a red circle", "a blue square", "a green ring"], [3, 4, 5]


def settings(**changes: object) -> Settings:
    usual = {"guidance_scale": 4.0, "steps": 2, "size": ClipSize(frames=9, height=32, width=32)}
    return Settings(**{**usual, **changes})


def drawn(pipe, **changes: object) -> torch.Tensor:
    indices, clips = zip(*latent_clips(pipe, PROMPTS, SEEDS, settings(**changes)), strict=True)
    assert indices == (0, 1, 2)
    return torch.cat(clips)


@pytest.mark.parametrize("dpm", [False, True], ids=["ddim", "dpm"])
def test_a_clip_is_the_same_alone_and_in_a_batch(folder: Path, dpm: bool) -> None:
    pipe = load_pipeline(find_base(str(folder)))
    if dpm:
        pipe.scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(drawn(pipe, batch_size=2), drawn(pipe), rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_is_on_every_row(small: Path) -> None:
    pipe = load_pipeline(find_base(str(small)))
    refused, plain = drawn(pipe, negative_prompt="a dog", batch_size=2), drawn(pipe)
    torch.testing.assert_close(refused, drawn(pipe, negative_prompt="a dog"), rtol=1e-4, atol=1e-4)
    assert all(not torch.allclose(one, other, atol=1e-3) for one, other in zip(refused, plain, strict=True))


def test_embeddings_stand_in_for_the_text_encoder(small: Path) -> None:
    base = find_base(str(small))
    backbone = CogVideoX(base, device="cpu")
    backbone.embed(PROMPTS)
    pipe = load_pipeline(base, text_encoder=None, tokenizer=None)
    clips = latent_clips(pipe, PROMPTS, SEEDS, settings(), embeddings=backbone._table)
    ours = torch.cat([latents for _, latents in clips])
    torch.testing.assert_close(ours, drawn(load_pipeline(base)), rtol=1e-4, atol=1e-4)


def test_frames_are_as_many_and_as_large_as_was_asked(folder: Path) -> None:
    ((index, frames),) = draw(load_pipeline(find_base(str(folder))), PROMPTS[:1], SEEDS[:1], settings())
    assert (index, frames.shape, frames.dtype) == (0, (9, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ({}, None),
        ({3: torch.nan}, "seed 7 has 1 of 9 frames with NaN"),
        ({0: torch.inf, 8: torch.nan}, "seed 7 has 2 of 9 frames with NaN"),
        (dict.fromkeys(range(9), torch.nan), "seed 7 has 9 of 9"),
        (dict.fromkeys(range(9), -1.0), "seed 7 is all black"),
        (dict.fromkeys(range(8), -1.0), None),
    ],
)
def test_a_clip_that_went_wrong_is_told_of(
    spoilt: dict[int, float], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    video = torch.zeros(3, 9, 4, 6)
    for frame, value in spoilt.items():
        video[:, frame, 1:, 2:] = value
        if value == -1:
            video[:, frame] = value
    frames = list(watched(video.split([5, 4], dim=1), "the clip of seed 7"))
    assert len(frames) == 9
    assert said in caplog.text if said else not caplog.text
