"""The SD1.5 backbone against the stock pipeline."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from PIL import ImageChops
from safetensors.torch import save_file
from tests.image.ldm import single_file

from selfnpo_core.errors import InputError
from selfnpo_core.guidance import NULL
from selfnpo_core.models.backbone import Backbone, SamplingBackbone
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.system.devices import best_device
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training import build_recipe
from selfnpo_image.families import find_base
from selfnpo_image.family import IMAGE
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sd15 import SD15

PROMPTS = ["a red fox", "a very small boat on a very large lake"]


@pytest.fixture
def backbone(folder: Path) -> SD15:
    made = SD15(find_base(str(folder)), device="cpu")
    made.embed(PROMPTS)
    return made


def test_it_is_a_backbone(backbone: SD15, folder: Path) -> None:
    assert isinstance(backbone, Backbone)
    assert (backbone.name, backbone.family, backbone.latent_shape) == (str(folder), "sd15", (4, 16, 16))
    assert backbone.base_hash == weights_hash(load_pipeline(find_base(str(folder))).unet)


def test_embed_is_encode_prompt(backbone: SD15, folder: Path) -> None:
    wanted, null = load_pipeline(find_base(str(folder))).encode_prompt(PROMPTS, "cpu", 1, True)
    table = backbone._table
    (texts,) = table
    assert torch.equal(texts[:2], wanted)
    assert torch.allclose(texts[NULL], null[0], atol=1e-6)
    assert backbone.bytes_per_prompt == texts[0].numel() * texts.element_size()


def test_embed_in_several_batches(folder: Path, backbone: SD15) -> None:
    many = SD15(find_base(str(folder)), device="cpu")
    many.embed([*["a cat"] * 40, *PROMPTS])
    assert torch.allclose(many._table[0][40:], backbone._table[0], atol=1e-6)


def test_prompts_that_are_too_long_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    SD15(find_base(str(folder)), device="cpu").embed(["a cat", "a very long tale " * 40])
    assert "1 of 2 prompts are longer than 77 tokens" in caplog.text


def test_predict_is_the_unets_answer(backbone: SD15, folder: Path) -> None:
    pipe = load_pipeline(find_base(str(folder)))
    x_t, t = torch.randn(3, 4, 16, 16), torch.tensor([5, 500, 980])
    texts = pipe.encode_prompt([PROMPTS[1], "", PROMPTS[0]], "cpu", 1, False)[0]
    with torch.no_grad():
        wanted = pipe.unet(x_t, t, encoder_hidden_states=texts).sample
        given = backbone.predict(x_t, t, torch.tensor([1, NULL, 0]))
    assert torch.allclose(given, wanted, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(folder: Path, backbone: SD15, dtype: torch.dtype) -> None:
    """Another dtype, the same base: hashed before the cast."""
    half = SD15(find_base(str(folder)), dtype=dtype, device="cpu")
    half.embed(PROMPTS)
    x_t, t, prompt = torch.randn(2, 4, 16, 16), torch.tensor([100, 700]), torch.tensor([0, NULL])
    with torch.no_grad():
        output, wanted = half.predict(x_t, t, prompt), backbone.predict(x_t, t, prompt)
    assert output.dtype == dtype
    assert half.base_hash == backbone.base_hash
    assert (output.float() - wanted).norm() < 0.05 * wanted.norm()
    assert half._table[0].dtype == dtype


@pytest.mark.parametrize("place", ["folder", "file"])
@pytest.mark.parametrize(("dtype", "bytes_each"), [(torch.float16, 3), (torch.bfloat16, 4.5)])
def test_what_is_stored_in_16_bits_never_lies_in_32(
    folder: Path, tmp_path: Path, place: str, dtype: torch.dtype, bytes_each: float
) -> None:
    """2 bytes a number, 2 more where another type is wanted, and the largest tensor's hash; whatever the encoder is."""
    pipe = load_pipeline(find_base(str(folder))).to(torch.float16)
    pipe.text_encoder.float()
    if place == "folder":
        pipe.save_pretrained(tmp_path / "half")
        base = find_base(str(tmp_path / "half"))
    else:
        save_file(single_file(pipe), tmp_path / "half.safetensors")
        base = find_base(str(tmp_path / "half.safetensors"), folder)
    made: list[SD15] = []
    peak = peak_tensor_bytes(lambda: made.append(SD15(base, dtype=dtype, device="cpu")))
    numbers = sum(p.numel() for part in (pipe.unet, pipe.vae) for p in part.parameters())
    assert 2 * numbers <= peak < bytes_each * numbers
    assert made[0].base_hash == weights_hash(pipe.unet)
    for name, parameter in made[0].denoiser.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, pipe.unet.get_parameter(name).to(dtype))


def test_a_vae_that_was_stored_wider_than_the_denoiser_keeps_its_numbers(folder: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(find_base(str(folder)))
    wide = {name: tensor.clone() for name, tensor in pipe.vae.state_dict().items()}
    pipe.unet.half()
    pipe.save_pretrained(tmp_path / "mixed")
    save_file(single_file(pipe), tmp_path / "mixed.safetensors")
    for base in (find_base(str(tmp_path / "mixed")), find_base(str(tmp_path / "mixed.safetensors"), folder)):
        vae = load_pipeline(base, dtype=None, text_encoder=None).vae.state_dict()
        assert all(torch.equal(vae[name], tensor) for name, tensor in wide.items())


def test_prediction_type_and_schedule_are_the_schedulers(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "v")
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    v = SD15(find_base(str(copy)), device="cpu")
    assert v.prediction_type == "v_prediction"
    assert torch.equal(v.schedule.grid(4), SD15(find_base(str(folder)), device="cpu").schedule.grid(4))


def test_text_encoder_and_vae_are_gone_after_embedding(folder: Path) -> None:
    backbone = SD15(find_base(str(folder)), device="cpu")
    assert not backbone.text_encoder_on_device
    pipe = backbone._pipeline(encoders=True)
    assert backbone.text_encoder_on_device
    assert backbone.vae_on_device
    parts = [weakref.ref(pipe.text_encoder), weakref.ref(pipe.vae)]
    del pipe
    backbone.embed(PROMPTS)
    gc.collect()
    assert [part() for part in parts] == [None, None]
    assert not backbone.vae_on_device
    assert not backbone.text_encoder_on_device


def test_drawn_samples_are_the_stock_pipelines(backbone: SD15, folder: Path) -> None:
    pipe = load_pipeline(find_base(str(folder)))
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    wanted = pipe(PROMPTS, guidance_scale=4.0, num_inference_steps=3, generator=seeds).images
    drawn = backbone.draw_samples(PROMPTS, [3, 4], guidance_scale=4.0, steps=3, negative=None)
    for a, b in zip(drawn, wanted, strict=True):
        assert ImageChops.difference(a, b).getbbox() is None
    assert not backbone.vae_on_device


@pytest.mark.parametrize(("said", "tiled"), [(None, False), (False, False), (True, True)])
def test_sample_tiling_decodes_grids_by_tiles(folder: Path, said: bool | None, tiled: bool) -> None:
    """As the stock pipeline does it; the VAE's tiles are of 16 latent pixels."""
    recipe = build_recipe({"device": "cpu", "height": 48, "width": 48, "sample_tiling": said})
    backbone = IMAGE.backbone(find_base(str(folder)), recipe, torch.float32, "cpu")
    backbone.embed(PROMPTS)
    pipe = load_pipeline(find_base(str(folder)))
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for on in (False, True):
        if on:
            pipe.vae.enable_tiling()
        seed = torch.Generator().manual_seed(3)
        call: dict[str, Any] = {"num_inference_steps": 2, "height": 48, "width": 48, "generator": seed}
        pictures += pipe(PROMPTS[0], guidance_scale=4.0, **call).images
    (drawn,) = backbone.draw_samples(PROMPTS[:1], [3], guidance_scale=4.0, steps=2, negative=None)
    assert [ImageChops.difference(drawn, one).getbbox() is None for one in pictures] == [not tiled, tiled]


def test_drawn_latents_are_the_stock_pipelines(backbone: SD15, folder: Path) -> None:
    """Also where they are more than one batch of the pipeline's."""
    pipe = load_pipeline(find_base(str(folder)))
    pipe.set_progress_bar_config(disable=True)
    texts, numbers = [*PROMPTS, *PROMPTS[:1]] * 3, list(range(9))
    (height, width), seeds = backbone.size, [torch.Generator().manual_seed(seed) for seed in numbers]
    call: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 3, "height": height, "width": width}
    wanted = pipe(texts, generator=seeds, output_type="latent", **call).images
    drawn = backbone.draw_latents(texts, numbers, guidance_scale=4.0, steps=3)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (9, *backbone.latent_shape)
    torch.testing.assert_close(drawn, wanted, rtol=1e-5, atol=1e-5)
    assert not backbone.vae_on_device
    assert isinstance(backbone, SamplingBackbone)


def test_what_decides_drawn_latents_is_told(backbone: SD15, folder: Path) -> None:
    facts = json.loads(json.dumps(backbone.drawing_facts()))
    assert facts["scheduler"]["_class_name"] == type(load_pipeline(find_base(str(folder))).scheduler).__name__
    again = SD15(find_base(str(folder)), device="cpu")
    again.embed(PROMPTS)
    assert again.drawing_facts() == backbone.drawing_facts()
    again.embed(["a grey fox", PROMPTS[1]])
    assert again.drawing_facts() != backbone.drawing_facts()


def test_drawing_with_a_full_weight_offset_leaves_the_base_as_it_was(backbone: SD15) -> None:
    name, weight = next(iter(backbone.denoiser.named_parameters()))
    call = {"guidance_scale": 4.0, "steps": 2}
    plain = backbone.draw_samples(PROMPTS, [3, 4], negative=None, **call)  # type: ignore[arg-type]
    other = backbone.draw_samples(PROMPTS, [3, 4], negative={name: torch.ones_like(weight)}, **call)  # type: ignore[arg-type]
    assert ImageChops.difference(plain[0], other[0]).getbbox() is not None
    assert weights_hash(backbone.denoiser) == backbone.base_hash


def test_latents_are_drawn_against_negative_weights_of_a_strength(backbone: SD15) -> None:
    name, weight = next(iter(backbone.denoiser.named_parameters()))
    call: dict[str, Any] = {"guidance_scale": 4.0, "steps": 2}
    plain = backbone.draw_latents(PROMPTS, [3, 4], **call)
    half = backbone.draw_latents(PROMPTS, [3, 4], **call, negative={name: torch.ones_like(weight)}, beta=0.5)
    smaller = backbone.draw_latents(PROMPTS, [3, 4], **call, negative={name: torch.ones_like(weight) / 2})
    torch.testing.assert_close(half, smaller)
    assert not torch.allclose(half, plain, atol=1e-3)
    assert weights_hash(backbone.denoiser) == backbone.base_hash


def test_drawing_with_an_adapter(backbone: SD15) -> None:
    unet = backbone.denoiser
    unet.add_adapter(LoraConfig(r=2, target_modules=backbone.lora_targets["attention"]), adapter_name="npo")
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    unet.disable_adapters()
    plain = backbone.draw_samples(PROMPTS, [3, 4], guidance_scale=4.0, steps=2, negative=None)
    plain_latents = backbone.draw_latents(PROMPTS, [3, 4], guidance_scale=4.0, steps=2)
    unet.enable_adapters()
    other = backbone.draw_samples(PROMPTS, [3, 4], guidance_scale=4.0, steps=2, negative="npo")
    assert ImageChops.difference(plain[0], other[0]).getbbox() is not None
    how: dict[str, Any] = {"guidance_scale": 4.0, "steps": 2, "negative": "npo"}
    none, whole = (backbone.draw_latents(PROMPTS, [3, 4], **how, beta=beta) for beta in (0.0, 1.0))
    torch.testing.assert_close(none, plain_latents)
    assert not torch.allclose(none, whole, atol=1e-3)


def test_attention_names(backbone: SD15) -> None:
    x_t, t, prompt = torch.randn(1, 4, 16, 16), torch.tensor([100]), torch.tensor([0])
    with torch.no_grad():
        wanted = backbone.predict(x_t, t, prompt)
        backbone.use_attention("auto")
        backbone.use_attention("eager")
        processors = backbone.denoiser.attn_processors.values()
        assert all(isinstance(processor, AttnProcessor) for processor in processors)
        assert torch.allclose(backbone.predict(x_t, t, prompt), wanted, atol=1e-5)
        backbone.use_attention("sdpa")
        assert torch.allclose(backbone.predict(x_t, t, prompt), wanted, atol=1e-5)
    with pytest.raises(InputError, match="unknown"):
        backbone.use_attention("flash9")
    with pytest.raises(InputError, match="xformers cannot run here"):
        backbone.use_attention("xformers")


def test_devices_that_are_not_there() -> None:
    assert best_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="cannot be used"):
        best_device("nonsense")
