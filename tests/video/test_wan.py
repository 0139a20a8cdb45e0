"""Wan's backbone and its parts against diffusers' own pipeline."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from tests.model_folders import copied, edit
from tests.tiny import WAN_KINDS, sample, wan
from tests.video.planning import planned
from torch import Tensor

from selfnpo_core.denoise import ddim_step
from selfnpo_core.errors import InputError
from selfnpo_core.guidance import NULL, guide
from selfnpo_core.models.backbone import Backbone, MovingBackbone, SamplingBackbone, WindowedBackbone
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.prediction import to_estimate
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_video import attention
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.families import backbone_of, find_base
from selfnpo_video.loading import load_pipeline, use_scheduler
from selfnpo_video.long import blend_weights, window_starts, windowed
from selfnpo_video.shapes import ClipSize
from selfnpo_video.streaming import decode_stream
from selfnpo_video.wan import WAN, Wan, rope_at

CLIP = {"frames": 9, "height": 64, "width": 64}
PROMPTS = ["a red circle moves left", "a  blue &amp; square  grows"]


def backbone_at(folder: Path, **options: Any) -> Wan:
    made = Wan(find_base(str(folder)), **{**CLIP, "device": "cpu", **options})
    made.embed(PROMPTS)
    return made


def stock(folder: Path) -> Any:
    pipe = load_pipeline(find_base(str(folder)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Any, prompt: Any, **call: Any) -> Tensor:
    """(n, F, C, h, w) of the stock pipeline."""
    clip = {"num_frames": CLIP["frames"], "height": CLIP["height"], "width": CLIP["width"]}
    return pipe(prompt, **clip, output_type="latent", **call).frames.transpose(1, 2)


def test_it_is_a_backbone(wan_folder: Path) -> None:
    backbone = backbone_at(wan_folder)
    for kind in (Backbone, MovingBackbone, SamplingBackbone, WindowedBackbone):
        assert isinstance(backbone, kind)
    assert (backbone.family, backbone.prediction_type) == ("wan", "flow")
    assert backbone_of(find_base(str(wan_folder))) is Wan
    assert backbone.base_hash == weights_hash(stock(wan_folder).transformer)
    assert "scheduler" in json.loads(json.dumps(backbone.drawing_facts()))


def test_embeddings_are_the_pipelines(wan_folder: Path) -> None:
    """Cleaned as it cleans, zeros after the text, and the null prompt's row is that of the empty one."""
    backbone, pipe = backbone_at(wan_folder), stock(wan_folder)
    given, null = pipe.encode_prompt(PROMPTS, max_sequence_length=512, device="cpu")
    table = backbone._table
    assert table is not None
    torch.testing.assert_close(table, torch.cat([given, null[:1]]), rtol=1e-5, atol=1e-5)
    ends = [len(pipe.tokenizer(text).input_ids) for text in (PROMPTS[0], "a blue & square grows", "")]
    for row, end in zip(table, ends, strict=True):
        assert row[:end].abs().sum(dim=1).all()
        assert not row[end:].any()
    other = backbone_at(wan_folder, null_prompt="ugly, still")._table
    assert other is not None
    expected = pipe.encode_prompt(["ugly, still"], do_classifier_free_guidance=False, max_sequence_length=512)[0][0]
    torch.testing.assert_close(other[NULL], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", WAN_KINDS)
def test_a_loop_from_our_pieces_gives_the_pipelines_latents(kind: str, tmp_path: Path) -> None:
    wan(kind).save_pretrained(tmp_path)
    backbone = backbone_at(tmp_path)
    noise = torch.randn((2, *backbone.latent_shape), generator=torch.Generator().manual_seed(3))
    grid, x, prompt = backbone.schedule.grid(5), noise.clone(), torch.arange(2)
    with torch.no_grad():
        for t, t_next in zip(grid, [*grid[1:], backbone.schedule.clean], strict=True):
            level = backbone.schedule.at(t.expand(2), like=x)
            both = [
                to_estimate(backbone.predict(x, t.expand(2), rows), x, level, backbone.prediction_type)
                for rows in (torch.full((2,), NULL), prompt)
            ]
            x = ddim_step(guide(*both, 4.0), backbone.schedule.at(t_next.expand(2), like=x))
    call = {"latents": noise.transpose(1, 2).clone(), "num_inference_steps": 5, "guidance_scale": 4.0}
    torch.testing.assert_close(x, latents(stock(tmp_path), PROMPTS, **call), rtol=1e-5, atol=1e-5)


def test_predict_is_what_the_stock_pipeline_asks(wan_folder: Path) -> None:
    """Both branches of a guided step, caught on their way into the network."""
    backbone, pipe, caught = backbone_at(wan_folder), stock(wan_folder), []
    forward = pipe.transformer.forward

    def catch(**given: Any) -> Any:
        caught.append((given["hidden_states"], given["timestep"], forward(**given)[0]))
        return (caught[-1][2],)

    pipe.transformer.forward = catch
    latents(pipe, PROMPTS[1], num_inference_steps=2, guidance_scale=3.0)
    assert len(caught) == 4
    for (x_t, t, wanted), row in zip(caught, (1, NULL, 1, NULL), strict=True):
        assert t.ndim == (2 if pipe.config.expand_timesteps else 1)
        with torch.no_grad():
            given = backbone.predict(x_t.transpose(1, 2), t.flatten()[:1].float(), torch.tensor([row]))
        torch.testing.assert_close(given, wanted.transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_drawn_latents_are_the_stock_pipelines(wan_folder: Path) -> None:
    backbone, pipe = backbone_at(wan_folder), stock(wan_folder)
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    drawn = backbone.draw_latents(PROMPTS, [3, 4], guidance_scale=4.0, steps=3)
    assert (drawn.dtype, drawn.shape) == (torch.float32, (2, *backbone.latent_shape))
    for prompt, seed, ours in zip(PROMPTS, [3, 4], drawn, strict=True):
        call = {"generator": torch.Generator().manual_seed(seed), "num_inference_steps": 3, "guidance_scale": 4.0}
        torch.testing.assert_close(ours, latents(pipe, prompt, **call)[0], rtol=1e-5, atol=1e-5)
    (clip,) = backbone.draw_clips(PROMPTS[:1], [3], guidance_scale=2.0, steps=2, negative=None)
    assert clip.shape == (9, 64, 64, 3)


def test_the_null_prompt_is_the_pipelines_negative_prompt(small_wan: Path) -> None:
    backbone, pipe = backbone_at(small_wan, null_prompt="ugly, still"), stock(small_wan)
    drawn = backbone.draw_latents(PROMPTS[:1], [3], guidance_scale=4.0, steps=3)
    call = {"num_inference_steps": 3, "guidance_scale": 4.0}
    for negative, same in (("ugly, still", True), (None, False)):
        seeded = {"generator": torch.Generator().manual_seed(3), "negative_prompt": negative}
        assert torch.allclose(drawn, latents(pipe, PROMPTS[0], **seeded, **call), rtol=1e-5, atol=1e-5) is same


def test_a_type_of_16_bits_leaves_out_what_stays_float32(wan_folder: Path) -> None:
    """As the pipeline loads it; and the VAE is float32."""
    base = find_base(str(wan_folder))
    backbone, sketch = (
        Wan(base, **CLIP, dtype=torch.bfloat16, device="cpu"),
        Wan.sketch(base, **CLIP, dtype=torch.bfloat16),
    )
    pipe = load_pipeline(base, dtype=torch.bfloat16)
    loaded = WanTransformer3DModel.from_pretrained(wan_folder, subfolder="transformer", torch_dtype=torch.bfloat16)
    expected = {name: tensor.dtype for name, tensor in loaded.named_parameters()}
    assert set(expected.values()) == {torch.bfloat16, torch.float32}
    for network in (backbone.denoiser, sketch.denoiser, pipe.transformer):
        assert {name: tensor.dtype for name, tensor in network.named_parameters()} == expected
    assert (pipe.vae.dtype, pipe.text_encoder.dtype) == (torch.float32, torch.bfloat16)
    backbone.embed(PROMPTS)
    x, t, rows = torch.randn(1, *backbone.latent_shape), torch.tensor([500.0]), torch.tensor([0])
    exact = backbone_at(wan_folder).predict(x, t, rows)
    assert (backbone.predict(x, t, rows).float() - exact).norm() < 0.05 * exact.norm()
    assert backbone.base_hash == backbone_at(wan_folder).base_hash
    drawn = backbone.draw_latents(PROMPTS[:1], [3], guidance_scale=4.0, steps=2)
    assert drawn.isfinite().all()


def test_a_window_is_seen_at_its_own_place(wan_folder: Path) -> None:
    """Rotary positions of a window are those of its frames in the whole clip."""
    backbone = backbone_at(wan_folder, frames=33)
    x = torch.randn((1, *backbone.latent_shape), generator=torch.Generator().manual_seed(0))
    seen: list[Any] = []
    handle = backbone.denoiser.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    t, row = torch.tensor([500.0]), torch.tensor([0])
    with torch.no_grad():
        backbone.predict(x, t, row)
        backbone.predict_window(x[:, 2:6], t, row, first=2)
        backbone.predict_window(x[:, :4], t, row, first=0)
    handle.remove()
    whole, part, first = seen
    tokens = whole[0].shape[1] // x.shape[1]
    for table, some, begin in zip(whole, part, first, strict=True):
        assert torch.equal(some, table[:, 2 * tokens : 6 * tokens])
        assert torch.equal(begin, table[:, : 4 * tokens])
        assert not torch.allclose(some, begin)


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("kind", WAN_KINDS)
@torch.no_grad()
def test_a_long_clip_is_the_blend_of_its_windows(kind: str, place: int) -> None:
    network = wan(kind).transformer
    g = torch.Generator().manual_seed(0)
    x, window, overlap = torch.randn((1, network.config.in_channels, 10, 4, 4), generator=g), 4, 2
    text = torch.randn((1, 16, network.config.text_dim), generator=g)

    def ask(clip: Tensor, first: int = 0) -> Tensor:
        t = torch.tensor([300.0])
        if kind == "5b":
            t = t[:, None].expand(1, clip.shape[2] * 4)
        with rope_at(network, first):
            return network(clip, t, text, return_dict=False)[0]

    starts, expected = window_starts(10, window, overlap), torch.zeros_like(x)
    for row, start in zip(blend_weights(10, window, starts).float(), starts, strict=True):
        part = slice(start, start + window)
        expected[:, :, part] += row[part].reshape(1, 1, -1, 1, 1) * ask(x[:, :, part], min(place, start))
    short = ask(x[:, :, :window])
    with windowed(network, window, overlap, place=place, time=WAN.time):
        torch.testing.assert_close(ask(x), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(ask(x[:, :, :window]), short)
    assert "forward" not in vars(network)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("kind", WAN_KINDS)
@torch.no_grad()
def test_decoding_by_chunks_is_bit_equal(kind: str, frames: int) -> None:
    """To what the pipeline decodes, frame by frame."""
    pipe = wan(kind)
    given = torch.randn((2, frames, pipe.vae.config.z_dim, 4, 4), generator=torch.Generator().manual_seed(0))
    config = pipe.vae.config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    whole = pipe.vae.decode(given.transpose(1, 2) / (1.0 / std) + mean).sample
    pieces = list(decode_stream(pipe.vae, given))
    assert torch.equal(torch.cat(pieces, dim=2), whole)
    assert [piece.shape[2] for piece in pieces] == [1, *[4] * (frames - 1)]
    pipe.vae.enable_tiling(32, 32, 24, 24)
    (tiled,) = decode_stream(pipe.vae, given)
    assert torch.equal(tiled, pipe.vae.decode(given.transpose(1, 2) / (1.0 / std) + mean).sample)


@torch.no_grad()
def test_decoding_holds_no_more_of_a_longer_clip() -> None:
    vae = wan().vae
    short, long = (torch.zeros((1, frames, 16, 8, 8)) for frames in (4, 16))

    def peak(clip: Tensor) -> int:
        return peak_tensor_bytes(lambda: [None for _ in decode_stream(vae, clip)])

    assert peak(long) == pytest.approx(peak(short), rel=0.05)


def test_sizes(wan_folder: Path, small_wan: Path) -> None:
    compression = find_base(str(small_wan)).compression
    assert compression.latent_shape(ClipSize(frames=81, height=480, width=832)) == (21, 16, 60, 104)
    assert compression.latent_shape(ClipSize(frames=5, height=16, width=16)) == (2, 16, 2, 2)
    with pytest.raises(InputError, match=r"a multiple of 4 plus 1.* multiples of 16; the nearest is 9×32×48"):
        compression.check(ClipSize(frames=10, height=33, width=47))
    with pytest.raises(InputError, match="does not say what size it was made for"):
        Wan(find_base(str(wan_folder)), frames=9, device="cpu")
    large = find_base("wan2.2-5b").compression
    assert large.latent_shape(ClipSize(frames=121, height=704, width=1280)) == (31, 48, 44, 80)


def test_schedulers(wan_folder: Path, small_wan: Path) -> None:
    for folder, shift in ((wan_folder, 3.0), (small_wan, 7.0)):
        pipe = stock(folder)
        for word, name in (("unipc", "flow_shift"), ("euler", "shift")):
            use_scheduler(pipe, WAN, word)
            assert word in type(pipe.scheduler).__name__.lower()
            assert pipe.scheduler.config[name] == shift
            assert WAN.predicts(pipe.scheduler, "x") == "flow"
    clip = ("--frames", 9, "--height", 32, "--width", 32)
    with pytest.raises(InputError, match="--scheduler ddim is unknown for Wan: use auto, unipc or euler"):
        planned("--model", small_wan, *clip, "--scheduler", "ddim")
    with pytest.raises(InputError, match="--dynamic-guidance is of CogVideoX"):
        planned("--model", small_wan, *clip, "--dynamic-guidance")


@pytest.mark.parametrize("name", ["xformers", "flash"])
def test_a_kernel_that_cannot_run_is_replaced_with_one_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    pipe = wan()
    before = sample("wan", pipe)
    with caplog.at_level(logging.INFO, logger="selfnpo_video"):
        assert WAN.use_attention(pipe.transformer, name, torch.device("cpu"), torch.float32) == "sdpa"
    assert f"{name} cannot run here" in caplog.text
    assert torch.equal(sample("wan", pipe), before)


def test_a_kernel_that_runs_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network = wan().transformer
    monkeypatch.setattr(attention, "probe", lambda kernel, device, dtype: None)
    assert WAN.use_attention(network, "flash", torch.device("cpu"), torch.float32) == "flash"
    layers = [layer for layer in network.modules() if hasattr(layer, "processor")]
    assert {layer.processor._attention_backend.value for layer in layers} == {"_native_flash"}
    WAN.use_attention(network, "auto", torch.device("cpu"), torch.float32)
    with pytest.raises(InputError, match="is unknown for wan: use one of auto, sdpa, xformers, flash"):
        WAN.use_attention(network, "fast", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("place", "changes", "words"),
    [
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "is Wan's image-to-video form, which is not"),
        ("model_index.json", {"boundary_ratio": 0.875}, r"has two experts \(Wan 2.2 A14B\), which is not supported"),
        ("model_index.json", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "has two experts"),
        (
            "transformer/config.json",
            {"in_channels": 36},
            "not draw from text alone .36 input channels for latents",
        ),
        ("transformer/config.json", {"image_dim": 1280}, r"does not draw from text alone \(told of an image\)"),
        ("transformer/config.json", {"ffn_dim": "x"}, "has ffn_dim x in transformer/config.json"),
        ("transformer/config.json", {"patch_size": [1, 2]}, r"has patch_size \[1, 2\]"),
        ("vae/config.json", {"latents_mean": [0.0]}, "has no latents_mean of 16 numbers in vae/config.json"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "is not of flow matching with one shift"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "has a DDIMScheduler: Wan wants UniPC"),
    ],
)
def test_what_is_no_wan_from_text_is_refused(
    small_wan: Path, tmp_path: Path, place: str, changes: dict[str, Any], words: str
) -> None:
    """As a sketch, and as a model to train, in one line, before weights are read."""
    edit(copied(small_wan, tmp_path / "model") / place, **changes)
    for made in (Wan.sketch, Wan):
        with pytest.raises(InputError, match=words) as error:
            made(find_base(str(tmp_path / "model")), **CLIP)
        assert "\n" not in str(error.value)


def test_another_familys_backbone_and_lost_vocabularies(small_wan: Path, tmp_path: Path) -> None:
    folder = copied(small_wan, tmp_path / "model")
    with pytest.raises(InputError, match="is a Wan model, not of the CogVideoX family"):
        CogVideoX(find_base(str(folder)), **CLIP, device="cpu")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="lacks the vocabulary"):
        backbone_at(folder)
