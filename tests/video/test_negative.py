"""Negative weights on stock CogVideoX pipelines, text to video and image to video, against two whole models."""

import copy

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import CogVideoXDPMScheduler
from PIL import Image
from tests.core.adapters.reference import TwoModels, add_lora, assert_same, delta_of
from tests.tiny import COGVIDEOX_KINDS, FROM_IMAGE_KINDS, cogvideox

from selfnpo_core import NegativeAdapters, attach_npo
from selfnpo_core.errors import InputError
from selfnpo_core.weights.npo_folder import load_npo
from selfnpo_core.weights.offsets import offset_of
from selfnpo_video.cli import selfnpo_video
from selfnpo_video.cogvideox import COGVIDEOX
from selfnpo_video.loading import save_lora
from selfnpo_video.video_files import read_video

PICTURE = Image.fromarray((np.indices((64, 64, 3)).sum(0) * 2 % 256).astype(np.uint8))


def two_models(kind, pipe):
    """A pipeline whose network runs each branch through a model of its own."""
    reference = cogvideox(kind)
    negative = copy.deepcopy(reference.transformer)
    with torch.no_grad():
        for name, delta in delta_of(pipe.transformer, "npo").items():
            negative.get_parameter(name).add_(delta)
    reference.transformer = TwoModels(reference.transformer, negative)
    return reference


def latents(pipe, **call):
    pipe.set_progress_bar_config(disable=True)
    pictures = {"image": PICTURE} if "ImageToVideo" in type(pipe).__name__ else {}
    return pipe(
        prompt="a red fox",
        **pictures,
        num_frames=9,
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=5.0,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        **call,
    ).frames


@pytest.mark.parametrize("dynamic", [False, True], ids=["steady", "dynamic"])
@pytest.mark.parametrize("dpm", [False, True], ids=["ddim", "dpm"])
@pytest.mark.parametrize("kind", [*COGVIDEOX_KINDS, *FROM_IMAGE_KINDS])
def test_equals_two_models(kind, dpm, dynamic):
    pipe = cogvideox(kind)
    add_lora(pipe.transformer, "npo", seed=1)
    reference = two_models(kind, pipe)
    if dpm:
        for one in (pipe, reference):
            one.scheduler = CogVideoXDPMScheduler.from_config(one.scheduler.config)
    expected = latents(reference, use_dynamic_cfg=dynamic)
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        assert_same(latents(pipe, use_dynamic_cfg=dynamic), expected)
    pipe.transformer.disable_adapters()
    assert not torch.allclose(latents(pipe, use_dynamic_cfg=dynamic), expected, atol=1e-3)


@pytest.fixture(params=FROM_IMAGE_KINDS)
def from_image(request, tmp_path):
    """An image-to-video folder, negative weights for it, and a picture."""
    pipe = cogvideox(request.param)
    pipe.save_pretrained(tmp_path / "model")
    add_lora(pipe.transformer, "npo", seed=1)
    save_lora(COGVIDEOX, pipe.transformer, tmp_path / "npo", "npo")
    PICTURE.save(tmp_path / "first.png")
    return tmp_path


def options(folder, output, *more):
    size = ["--frames", "9", "--height", "64", "--width", "64", "--steps", "2", "--device", "cpu"]
    model = ["--model", str(folder / "model"), "--prompt", "a red fox", "--output", str(folder / output)]
    return [*model, *size, *more]


def test_an_image_becomes_a_clip_with_and_without_negative_weights(from_image):
    first, npo = ["--image", str(from_image / "first.png")], ["--npo", str(from_image / "npo")]
    for output, more in (("plain", []), ("again", []), ("negative", npo)):
        asked = options(from_image, output, *first, *more)
        done = CliRunner().invoke(selfnpo_video, ["sample", *asked], catch_exceptions=False, standalone_mode=False)
        assert "1 clips drawn" in done.output
    clips = {name: read_video(from_image / name / "00000-0.mp4")[0] for name in ("plain", "again", "negative")}
    assert clips["plain"].shape == (9, 64, 64, 3)
    assert np.array_equal(clips["plain"], clips["again"])
    assert not np.array_equal(clips["plain"], clips["negative"])


def test_an_image_is_asked_for_and_checked(from_image):
    run = ["sample", *options(from_image, "none")]
    Image.effect_noise((64, 64), 50).save(from_image / "whole.jpg")
    (from_image / "cut.jpg").write_bytes((from_image / "whole.jpg").read_bytes()[:1500])
    for more, message in (
        ([], "give the first frame as --image"),
        (["--image", str(from_image / "model" / "model_index.json")], "cannot be read as a picture"),
        (["--image", str(from_image / "cut.jpg")], "cannot be read as a picture"),
        (["--image", str(from_image / "first.png"), "--window", "13"], "--window is for text to video"),
    ):
        done = CliRunner().invoke(selfnpo_video, [*run, *more])
        assert isinstance(done.exception, InputError)
        assert message in str(done.exception)
        assert not (from_image / "none").exists()


def test_text_to_video_takes_no_image(small, tmp_path):
    PICTURE.save(tmp_path / "first.png")
    asked = ["--model", str(small), "--prompt", "a fox", "--output", str(tmp_path / "out"), "--frames", "9"]
    done = CliRunner().invoke(selfnpo_video, ["sample", *asked, "--image", str(tmp_path / "first.png")])
    assert "takes no image" in str(done.exception)


def test_training_wants_text_to_video(from_image):
    command = ["train", "--model", str(from_image / "model"), "--output", str(from_image / "run")]
    done = CliRunner().invoke(selfnpo_video, command)
    assert "training wants text to video: train its text-to-video sibling" in str(done.exception)
    done = CliRunner().invoke(selfnpo_video, ["train", "--model", "cogvideox-5b-i2v", "--dry-run"])
    assert "train cogvideox-5b, whose LoRA serves this one too (sample --other-base)" in str(done.exception)


TRAINED = ("steps=2", "batch_size=2", "grad_accumulation=1", "rollout=pool", "loss=huber", "pool_size=4")
TRAINED += ("grid_steps=3", "targets=all", "rank=4", "learning_rate=0.05", "max_drift=100", "mixed_precision=no")
TRAINED += ("device=cpu", "frames=9", "height=64", "width=64", "trackers=[]", "sample_every=0")
TRAINED += ("student_prompt_dropout=0",)


@pytest.mark.parametrize(("kind", "sibling"), [("5b", "5b-i2v"), ("1.5", "1.5-i2v")])
def test_weights_of_a_text_to_video_model_act_on_its_image_to_video_sibling(kind, sibling, tmp_path):
    """Whose patch embedding alone has other weights than the first's in shape, and no LoRA."""
    cogvideox(kind).save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red fox\n")
    places = ["--model", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts.txt")]
    words = [word for key in TRAINED for word in ("--set", key)]
    command = ["train", *places, "--output", str(tmp_path / "run"), *words]
    CliRunner().invoke(selfnpo_video, command, catch_exceptions=False, standalone_mode=False)
    pipe, reference = cogvideox(sibling), cogvideox(sibling)
    offset = offset_of(load_npo(tmp_path / "run"), pipe.transformer)
    assert not any("patch_embed" in name for name in offset)
    assert any("ff.net" in name for name in offset)
    negative = copy.deepcopy(reference.transformer)
    with torch.no_grad():
        for name, delta in offset.items():
            negative.get_parameter(name).add_(delta)
    reference.transformer = TwoModels(reference.transformer, negative)
    expected = latents(reference)
    with pytest.raises(InputError, match="was made for"):
        attach_npo(pipe, tmp_path / "run")
    with attach_npo(pipe, tmp_path / "run", other_base=True):
        assert_same(latents(pipe), expected)
    assert not torch.allclose(latents(pipe), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("cogvideox-2b", ["--frames", "48"], "the nearest is 49×480×720"),
        ("zai-org/CogVideoX-2b", ["--height", "100"], "the nearest is"),
        ("cogvideox-5b", ["--image", "first.png"], "takes no image"),
        ("cogvideox-5b-i2v", [], "give the first frame as --image"),
        ("cogvideox-2b", ["--window", "6"], "a window of 6 frames"),
    ],
)
def test_a_known_model_is_not_fetched_for_what_it_cannot_draw(tmp_path, monkeypatch, name, words, said):
    Image.new("RGB", (8, 8)).save(tmp_path / "first.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("selfnpo_video.loading.snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    (tmp_path / "prompts.txt").write_text("a cat\n")
    asked = ["--model", name, "--prompts", "prompts.txt", "--output", "out", *words]
    done = CliRunner().invoke(selfnpo_video, ["sample", *asked])
    assert said in str(done.exception)
