"""The CogVideoX adapter against diffusers' own pipeline."""

import json

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode

from selfnpo_core.denoise import ddim_step
from selfnpo_core.guidance import NULL, guide
from selfnpo_core.models.backbone import SamplingBackbone, has_numbers
from selfnpo_core.prediction import to_estimate
from selfnpo_core.schedule import CLEAN
from selfnpo_video import backbone as backbones
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_pipeline
from selfnpo_video.memory import decoding_bytes
from selfnpo_video.shapes import ClipSize

SIZE = ClipSize(frames=9, height=64, width=64)
PROMPTS = ["a red circle moves left", "a blue square grows"]


def test_a_loop_from_our_pieces_gives_the_pipelines_latents(folder):
    backbone = CogVideoX(find_base(str(folder)), frames=9, height=64, width=64, device="cpu")
    backbone.embed(PROMPTS)
    noise = torch.randn((2, *backbone.latent_shape), generator=torch.Generator().manual_seed(3))
    grid, x, prompt = backbone.schedule.grid(5), noise.clone(), torch.arange(2)
    with torch.no_grad():
        for t, t_next in zip(grid, [*grid[1:], torch.tensor(int(CLEAN))], strict=True):
            both = [
                to_estimate(
                    backbone.predict(x, t.expand(2), rows),
                    x,
                    backbone.schedule.at(t.expand(2), like=x),
                    backbone.prediction_type,
                )
                for rows in (torch.full((2,), NULL), prompt)
            ]
            x = ddim_step(guide(*both, 4.0), backbone.schedule.at(t_next.expand(2), like=x))
    pipe = load_pipeline(find_base(str(folder)))
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        PROMPTS,
        latents=noise.clone(),
        num_frames=SIZE.frames,
        height=SIZE.height,
        width=SIZE.width,
        num_inference_steps=5,
        guidance_scale=4.0,
        max_sequence_length=16,
        output_type="latent",
    ).frames
    ours = x[:, -expected.shape[1] :]  # the pipeline drops the frames that 1.5 pads in front
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_drawn_latents_are_the_stock_pipelines(folder):
    """With the frames that 1.5 pads in front, which the network is trained on too."""
    backbone = CogVideoX(find_base(str(folder)), frames=9, height=64, width=64, device="cpu")
    backbone.embed(PROMPTS)
    assert isinstance(backbone, SamplingBackbone)
    assert "scheduler" in json.loads(json.dumps(backbone.drawing_facts()))
    drawn = backbone.draw_latents(PROMPTS, [3, 4], guidance_scale=4.0, steps=3)
    assert (drawn.dtype, drawn.shape) == (torch.float32, (2, *backbone.latent_shape))
    pipe = load_pipeline(find_base(str(folder)))
    pipe.set_progress_bar_config(disable=True)
    for prompt, seed, ours in zip(PROMPTS, [3, 4], drawn, strict=True):
        expected = pipe(
            prompt,
            generator=torch.Generator().manual_seed(seed),
            num_frames=SIZE.frames,
            height=SIZE.height,
            width=SIZE.width,
            num_inference_steps=3,
            guidance_scale=4.0,
            max_sequence_length=16,
            output_type="latent",
        ).frames[0]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_window_is_seen_at_its_own_place(folder):
    """Rotary and sine-cosine positions of a window are those of its frames in the whole clip."""
    backbone = CogVideoX(find_base(str(folder)), frames=33, height=64, width=64, device="cpu")
    backbone.embed(PROMPTS[:1])
    transformer = backbone.denoiser
    assert isinstance(transformer, CogVideoXTransformer3DModel)
    x = torch.randn((1, *backbone.latent_shape), generator=torch.Generator().manual_seed(0))
    seen = []
    handle = transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["hidden_states"], kwargs["image_rotary_emb"])), with_kwargs=True
    )
    t, row = torch.tensor([500]), torch.tensor([0])
    with torch.no_grad():
        backbone.predict(x, t, row)
        backbone.predict_window(x[:, 2:6], t, row, first=2)
        backbone.predict_window(x[:, :4], t, row, first=0)
    handle.remove()
    tokens = seen[0][0].shape[1] // (x.shape[1] // (transformer.config.patch_size_t or 1))
    begin = 2 // (transformer.config.patch_size_t or 1) * tokens
    (whole, turns), (part, part_turns), (first, _) = seen
    torch.testing.assert_close(part, whole[:, begin : begin + part.shape[1]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first, whole[:, : first.shape[1]], rtol=1e-5, atol=1e-5)
    if turns is not None:
        for some, all_ in zip(part_turns, turns, strict=True):
            torch.testing.assert_close(some, all_[begin : begin + len(some)], rtol=1e-5, atol=1e-5)
    else:
        assert not torch.allclose(part, first[:, : part.shape[1]], atol=1e-2)


def test_positions_of_a_simulation_are_not_kept(folder):
    """A fake tensor of the same shape and device leaves nothing behind, and takes nothing that was kept."""
    backbone = CogVideoX(find_base(str(folder)), frames=9, height=64, width=64, device="cpu")
    x = torch.zeros((1, *backbone.latent_shape))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.zeros_like(x)
        assert not has_numbers(fake)
        made = backbone._rotary_at(fake, 0)
    assert not has_numbers(x.to("meta"))
    assert has_numbers(x)
    assert not backbone._rotary
    kept = backbone._rotary_at(x, 0)
    assert backbone._rotary_at(x, 0) is kept
    assert (kept is None) == (made is None)
    if kept is not None:
        assert all(has_numbers(part) for part in kept)


def drawn_clips(folder, monkeypatch, free, tiling=None):
    """Two clips of a run's grid, and whether the VAE decoded each of them tile by tile."""
    backbone = CogVideoX(find_base(str(folder)), frames=9, height=64, width=64, device="cpu", tiling=tiling)
    backbone.embed(PROMPTS)
    seen, decode = [], backbones.frames_of
    monkeypatch.setattr(backbones, "available", lambda _: free)
    monkeypatch.setattr(
        backbones, "frames_of", lambda pipe, *a, **k: seen.append(pipe.vae.use_tiling) or decode(pipe, *a, **k)
    )
    return backbone.draw_clips(PROMPTS, [3, 4], guidance_scale=2.0, steps=2, negative=None), seen


def test_a_grid_is_decoded_by_tiles_where_whole_frames_do_not_fit(small, monkeypatch):
    base = find_base(str(small))
    whole = decoding_bytes(base, SIZE, torch.float32, "cpu", tiling=False)
    for free, tiling, tiled in (
        (whole, None, False),
        (whole - 1, None, True),
        (whole - 1, False, False),
        (whole, True, True),
    ):
        with monkeypatch.context() as patch:
            clips, seen = drawn_clips(small, patch, free, tiling)
        assert seen == [tiled, tiled]
        assert [clip.shape for clip in clips] == [(9, 64, 64, 3)] * 2


def test_a_grid_that_runs_out_of_memory_is_decoded_again_by_tiles(small, monkeypatch):
    """The guess was wrong: the clip is decoded again from its latents, and the next one by tiles at once."""
    decode = backbones.frames_of

    def scarce(pipe, *args, **named):
        if not pipe.vae.use_tiling:
            raise torch.OutOfMemoryError("no room")
        return decode(pipe, *args, **named)

    monkeypatch.setattr(backbones, "frames_of", scarce)
    clips, seen = drawn_clips(small, monkeypatch, free=1 << 60)
    assert seen == [False, True, True]
    assert all(clip.std() > 0 for clip in clips)
    monkeypatch.setattr(backbones, "frames_of", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        drawn_clips(small, monkeypatch, free=1 << 60, tiling=False)
