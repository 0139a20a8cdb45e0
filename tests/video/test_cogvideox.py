"""The CogVideoX adapter against diffusers' own pipeline."""

import json
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from peft import LoraConfig

from selfnpo_core.denoise import ddim_step
from selfnpo_core.errors import InputError
from selfnpo_core.guidance import NULL, guide
from selfnpo_core.prediction import to_estimate
from selfnpo_core.schedule import CLEAN
from selfnpo_video.cogvideox import CogVideoX, load_pipeline
from selfnpo_video.models import KNOWN, architecture, known_as
from selfnpo_video.shapes import ClipSize, Compression

SIZE = ClipSize(frames=9, height=64, width=64)
PROMPTS = ["a red circle moves left", "a blue square grows"]


def test_a_loop_from_our_pieces_gives_the_pipelines_latents(folder):
    backbone = CogVideoX(str(folder), frames=9, height=64, width=64, device="cpu")
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
    pipe = load_pipeline(str(folder))
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


def test_a_window_is_seen_at_its_own_place(folder):
    """Rotary and sine-cosine positions of a window are those of its frames in the whole clip."""
    backbone = CogVideoX(str(folder), frames=33, height=64, width=64, device="cpu")
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


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_name_has_its_architecture(name):
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel.from_config(dict(architecture(name)))
    assert sum(p.numel() for p in transformer.parameters()) == KNOWN[name].parameters


def test_counts_are_the_published_ones():
    table = json.loads((files("selfnpo_video") / "architectures.json").read_text(encoding="utf-8"))
    assert table["published"]
    for name, published in table["published"].items():
        assert KNOWN[name].parameters == published["parameters"]
        with torch.device("meta"):
            transformer = CogVideoXTransformer3DModel.from_config(dict(architecture(name)))
            transformer.add_adapter(LoraConfig(r=128, target_modules=list(CogVideoX.lora_targets["attention"])))
        trained = sum(p.numel() for key, p in transformer.named_parameters() if ".lora_" in key)
        assert trained == published["attention_lora_of_rank_128"]


def test_a_folder_is_known_by_its_architecture(folder):
    for name in (name for name, model in KNOWN.items() if model.hub_id):
        known = known_as("a-folder", architecture(name))
        assert known is not None
        assert known.name == name
    tiny = CogVideoXTransformer3DModel.load_config(folder, subfolder="transformer")
    assert known_as("tiny", tiny) is None


def test_impossible_sizes_are_refused_with_the_nearest():
    compression = Compression(time=4, space=8, patch=2, patch_time=1, channels=16)
    assert compression.latent_shape(ClipSize(frames=49, height=480, width=720)) == (13, 16, 60, 90)
    with pytest.raises(InputError, match=r"nearest is 49×480×720"):
        compression.latent_shape(ClipSize(frames=48, height=481, width=725))
    with pytest.raises(InputError, match=r"nearest is (49|57)×480×720"):  # 14 latent frames would be 56 pictures
        compression.latent_shape(ClipSize(frames=53, height=480, width=720))
    padded = Compression(time=4, space=8, patch=2, patch_time=2, channels=16)
    assert padded.latent_shape(ClipSize(frames=81, height=768, width=1360)) == (22, 16, 96, 170)
    limited = replace(padded, largest=(2400, 2400))
    assert limited.latent_shape(ClipSize(frames=9, height=2400, width=2400))[2:] == (300, 300)
    with pytest.raises(InputError, match=r"at most 2400 and 2400; the nearest is 9×2400×2400"):
        limited.latent_shape(ClipSize(frames=9, height=2416, width=4000))
    fixed = Compression(
        time=4, space=8, patch=2, patch_time=1, channels=16, fixed=ClipSize(frames=49, height=480, width=720)
    )
    with pytest.raises(InputError, match="49×480×720"):
        fixed.check(ClipSize(frames=49, height=256, width=256))
