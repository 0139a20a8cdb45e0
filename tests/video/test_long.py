"""Long clips by overlapping windows."""

from itertools import pairwise

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from peft import LoraConfig
from tests.tiny import COGVIDEOX_KINDS, cogvideox, sample

from selfnpo_core.adapters import NegativeAdapters, NegativeDelta
from selfnpo_core.errors import InputError
from selfnpo_video.long import between, blend_weights, default_overlap, window_starts, windowed
from selfnpo_video.positions import rotary_positions, window_at

LONG = {"num_frames": 33, "height": 64, "width": 64}


@pytest.mark.parametrize(
    ("frames", "window", "overlap", "step"), [(39, 13, 6, 1), (14, 13, 6, 1), (40, 13, 1, 1), (22, 6, 2, 2)]
)
def test_windows_cover_every_frame_and_overlap(frames, window, overlap, step):
    starts = window_starts(frames, window, overlap, step)
    assert starts[0] == 0
    assert starts[-1] + window == frames
    assert all(start % step == 0 for start in starts)
    assert all(a + window - b >= overlap for a, b in pairwise(starts))
    weights = blend_weights(frames, window, starts)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(frames, dtype=torch.float64))
    for row, start in zip(weights, starts, strict=True):
        assert (row[start : start + window] > 0).all()
        assert not row[:start].any()
        assert not row[start + window :].any()


@pytest.mark.parametrize(
    ("frames", "window", "overlap", "step"),
    [(9, 3, 1, 1), (39, 13, 6, 1), (40, 13, 1, 1), (10, 4, 2, 2), (22, 8, 2, 2)],
)
def test_every_other_step_s_windows_overlap_as_much(frames, window, overlap, step):
    starts = window_starts(frames, window, overlap, step)
    moved = between(starts, step)
    assert (moved[0], moved[-1]) == (0, frames - window)
    assert all(start % step == 0 for start in moved)
    assert all(0 < b - a <= window - overlap for a, b in pairwise(moved))
    assert between([0, 2, 4, 6]) == [0, 1, 3, 5, 6]


def test_weights_are_linear_in_an_overlap():
    weights = blend_weights(6, 4, [0, 2])
    expected = [[1, 1, 2 / 3, 1 / 3, 0, 0], [0, 0, 1 / 3, 2 / 3, 1, 1]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="overlap"):
        window_starts(40, 13, 13)


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("kind", COGVIDEOX_KINDS)
@torch.no_grad()
def test_a_long_clip_is_the_blend_of_its_windows(kind, place):
    pipe = cogvideox(kind)
    transformer, step = pipe.transformer, pipe.transformer.config.patch_size_t or 1
    window, overlap, frames = 2 * step + 2, 2, 10
    g = torch.Generator().manual_seed(0)
    x = torch.randn((1, frames, 4, 8, 8), generator=g)
    text = torch.randn((1, 16, transformer.config.text_embed_dim), generator=g)

    def ask(clip, first=0, t=300):
        t = torch.tensor([t])
        rotary = rotary_positions(transformer, clip.shape[1], 8, 8, first=first)
        with window_at(transformer, first):
            return transformer(clip, text, t, image_rotary_emb=rotary, return_dict=False)[0]

    starts = window_starts(frames, window, overlap, step)

    def blend(starts, t):
        expected = torch.zeros_like(x)
        for row, start in zip(blend_weights(frames, window, starts).float(), starts, strict=True):
            part = slice(start, start + window)
            expected[:, part] += row[part].reshape(1, -1, 1, 1, 1) * ask(x[:, part], min(place, start), t)
        return expected

    moved = between(starts, step)
    assert moved != starts
    short = ask(x[:, :window])
    with windowed(transformer, window, overlap, place=place):
        for t, expected in [(300, starts), (300, starts), (200, moved), (200, moved), (100, starts), (250, starts)]:
            torch.testing.assert_close(ask(x, t=t), blend(expected, t), rtol=1e-5, atol=1e-5)
        assert torch.equal(ask(x[:, :window]), short)
    assert "forward" not in vars(transformer)


@pytest.mark.parametrize("window", [2, 4, 6])
def test_short_windows_of_whole_patches(window):
    if window == 2:
        with pytest.raises(InputError, match="longer"):
            window_starts(8, 2, default_overlap(2, 2), 2)
    else:
        starts = window_starts(12, window, default_overlap(window, 2), 2)
        assert starts[-1] + window == 12


def test_a_place_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="multiple of 2"), windowed(cogvideox("1.5").transformer, 4, 2, place=1):
        pass
    transformer = cogvideox().transformer
    transformer.compile(backend="eager")
    with pytest.raises(InputError, match="compiled"), windowed(transformer, 4, 2, place=1):
        pass


def test_windows_and_full_weights_outlive_offloading():
    """accelerate's hooks are taken off and put on again after every call of a pipeline that offloads."""
    pipe, seen = cogvideox(), []
    transformer = pipe.transformer
    plain = transformer.forward
    delta = {"proj_out.weight": 0.3 * torch.ones_like(transformer.proj_out.weight)}
    count = transformer.transformer_blocks[0].register_forward_hook(lambda *_: seen.append(1))
    expected = sample("cogvideox", pipe, **LONG)
    whole = len(seen)
    for first in ("hooked before", "hooked within"):
        if first == "hooked before":
            add_hook_to_module(transformer, ModelHook())
        with windowed(transformer, 4), NegativeDelta.attach(pipe, delta):
            drawn = []
            for _ in range(2):
                remove_hook_from_module(transformer)
                add_hook_to_module(transformer, ModelHook())
                seen.clear()
                drawn.append(sample("cogvideox", pipe, **LONG))
                assert len(seen) > 2 * whole
        assert torch.equal(*drawn)
        assert not torch.allclose(drawn[0], expected)
        assert torch.equal(sample("cogvideox", pipe, **LONG), expected)
        remove_hook_from_module(transformer)
    count.remove()
    assert transformer.forward == plain


def test_a_lora_in_windows_equals_its_offset_of_all_weights():
    pipe = cogvideox()
    transformer = pipe.transformer
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_v"]), adapter_name="npo")
    delta = {}
    for index, block in enumerate(transformer.transformer_blocks):
        down, up = block.attn1.to_v.lora_A["npo"].weight, block.attn1.to_v.lora_B["npo"].weight
        with torch.no_grad():
            up.normal_(generator=torch.Generator().manual_seed(index))
        scale = block.attn1.to_v.scaling["npo"]
        delta[f"transformer_blocks.{index}.attn1.to_v.weight"] = (scale * up @ down).detach()
    with windowed(transformer, 4), NegativeAdapters.attach(pipe, {"npo": 1.0}):
        steered = sample("cogvideox", pipe, **LONG)
    other = cogvideox()
    with windowed(other.transformer, 4):
        plain = sample("cogvideox", other, **LONG)
        with NegativeDelta.attach(other, delta):
            torch.testing.assert_close(steered, sample("cogvideox", other, **LONG), rtol=1e-4, atol=1e-4)
    assert (steered - plain).abs().mean() > 1e-2


def test_negative_guidance_acts_in_every_window():
    pipe = cogvideox()
    delta = {"proj_out.weight": 0.3 * torch.ones_like(pipe.transformer.proj_out.weight)}
    with windowed(pipe.transformer, 4):
        plain = sample("cogvideox", pipe, **LONG)
        with NegativeDelta.attach(pipe, delta):
            steered = sample("cogvideox", pipe, **LONG)
    change = (steered - plain).abs().mean(dim=(0, 2, 3, 4))
    assert plain.shape[1] == 9
    assert (change > 0.1 * change.mean()).all()
