"""The larger families on tiny models: the backbone against the stock pipeline, the commands from `train` on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import QwenImagePipeline, SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from PIL import ImageChops
from safetensors.torch import load_file
from tests.image.conftest import Command, quick
from tests.tiny import PIPELINES

from selfnpo_core.commands.running import run
from selfnpo_core.errors import InputError
from selfnpo_core.guidance import NULL
from selfnpo_core.models.backbone import Backbone, SamplingBackbone
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.training import build_recipe, dry_run
from selfnpo_core.weights.lora_file import read_lora
from selfnpo_core.weights.lora_layers import layers_in, put_into
from selfnpo_image.backbone import ImageBackbone
from selfnpo_image.cli import selfnpo_image
from selfnpo_image.drawing import Settings, draw
from selfnpo_image.families import FAMILIES, find_base, presets_for
from selfnpo_image.kinds import CONFIGS
from selfnpo_image.loading import known_configs, load_pipeline
from selfnpo_image.models import KNOWN, defaults
from selfnpo_image.sd15 import SD15
from selfnpo_image.sdxl import SDXL
from selfnpo_image.single_file import configs_for

PROMPTS = ["a red fox", "a very small boat on a very large lake"]
NAMES = ["sdxl", "sd3", "qwen-image", "z-image", "flux2-klein"]
SIDES: dict[str, int] = {"height": 32, "width": 48}
"""Of the pictures of families whose networks do not say for which they are."""
OWN_SIDES = ("sdxl", "sd3")
GUIDED: dict[str, Callable[[float, int], dict[str, Any]]] = {
    "sdxl": lambda scale, count: {"guidance_scale": scale},
    "sd3": lambda scale, count: {"guidance_scale": scale},
    "qwen-image": lambda scale, count: {"true_cfg_scale": scale, "negative_prompt": [" "] * count},
    "z-image": lambda scale, count: {"guidance_scale": scale - 1},
    "flux2-klein": lambda scale, count: {"guidance_scale": scale},
}
"""How a user of the stock pipeline asks so many prompts for ε(∅) + g·(ε(c) − ε(∅))."""


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / family
    PIPELINES[family]().save_pretrained(path)
    return path


@pytest.fixture
def backbone(family: str, model: Path) -> ImageBackbone:
    made = FAMILIES[family](find_base(str(model)), device="cpu", **sides(family))
    made.embed(PROMPTS)
    return made


def sides(family: str) -> dict[str, int]:
    return {} if family in OWN_SIDES else SIDES


def stock(model: Path) -> Any:
    pipe = load_pipeline(find_base(str(model)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unpatched(family: str, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A stock pipeline's x_t as ours."""
    if family == "qwen-image":
        whole: torch.Tensor = QwenImagePipeline._unpack_latents(patches, 2 * rows, 2 * columns, 2)[:, :, 0]
        return whole
    return patches.transpose(1, 2).reshape(len(patches), -1, rows, columns)


def decodable(family: str, pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Our latents as the stock pipeline returns them."""
    if family == "qwen-image":
        channels, rows, columns = latents.shape[1:]
        packed: torch.Tensor = pipe._pack_latents(latents, len(latents), channels, rows, columns)
        return packed
    if family == "flux2-klein":
        mean, variance = (stat.view(1, -1, 1, 1) for stat in (pipe.vae.bn.running_mean, pipe.vae.bn.running_var))
        latents = latents * torch.sqrt(variance + pipe.vae.config.batch_norm_eps) + mean
        whole: torch.Tensor = pipe._unpatchify_latents(latents)
        return whole
    return latents


def test_it_is_a_backbone(backbone: ImageBackbone, family: str, model: Path) -> None:
    assert isinstance(backbone, Backbone)
    assert backbone.family == family
    assert backbone.prediction_type == ("epsilon" if family == "sdxl" else "flow")
    assert backbone.base_hash == weights_hash(getattr(stock(model), backbone.kind.denoiser))
    assert backbone.bytes_per_prompt == sum(part[0].numel() * part.element_size() for part in backbone._table)
    assert not backbone.text_encoder_on_device


def test_predict_is_what_the_stock_pipeline_asks(backbone: ImageBackbone, model: Path, family: str) -> None:
    """Both branches of a guided step: what it steps with at g = 1 and 2 is v(c) and 2·v(c) − v(∅)."""
    pipe, caught = stock(model), []
    step = pipe.scheduler.step

    def catch(output: torch.Tensor, t: torch.Tensor, x_t: torch.Tensor, **kwargs: Any) -> Any:
        caught.append((output, t, x_t))
        return step(output, t, x_t, **kwargs)

    pipe.scheduler.step = catch
    height, width = backbone.size
    draws = {"num_inference_steps": 2, "height": height, "width": width, "output_type": "latent"}
    for scale in (1.0, 2.0):
        pipe(prompt=PROMPTS[1], **draws, **GUIDED[family](scale, 1))
    assert len(caught) == 4
    rows, columns = backbone.latent_shape[1:]
    for index, (wanted, t, x) in enumerate(caught):
        x_t = x if x.ndim == 4 else unpatched(family, x, rows, columns)
        if family == "sdxl":
            x_t = x / (pipe.scheduler.sigmas[index % 2] ** 2 + 1) ** 0.5  # as the network sees it
        with torch.no_grad():
            null, given = backbone.predict(x_t.expand(2, -1, -1, -1), t.expand(2).clone(), torch.tensor([NULL, 1]))
        guided = given if index < 2 else null + 2 * (given - null)
        if family == "qwen-image":
            guided, given = (pipe._pack_latents(v[None], 1, *v.shape) for v in (guided, given))
            guided = guided * given.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        elif family == "flux2-klein":
            guided = pipe._pack_latents(guided[None])
        torch.testing.assert_close(guided.reshape(wanted.shape), wanted, atol=1e-5, rtol=1e-4)


def test_drawn_samples_are_the_stock_pipelines(backbone: ImageBackbone, model: Path, family: str) -> None:
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    height, width = backbone.size
    call: dict[str, Any] = {"height": height, "width": width, **GUIDED[family](4.0, 2)}
    wanted = stock(model)(prompt=[*PROMPTS], num_inference_steps=3, generator=seeds, **call).images
    drawn = backbone.draw_samples(PROMPTS, [3, 4], guidance_scale=4.0, steps=3, negative=None)
    for a, b in zip(drawn, wanted, strict=True):
        assert ImageChops.difference(a, b).getbbox() is None


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_drawn_latents_are_the_stock_pipelines(backbone: ImageBackbone, model: Path, family: str, scale: float) -> None:
    """Also where they are more than one batch of the pipeline's, and without guidance."""
    pipe = stock(model)
    texts, numbers = [*PROMPTS, *PROMPTS[:1]] * 3, list(range(9))
    (height, width), seeds = backbone.size, [torch.Generator().manual_seed(seed) for seed in numbers]
    call: dict[str, Any] = {"num_inference_steps": 3, "height": height, "width": width, **GUIDED[family](scale, 9)}
    wanted = pipe(prompt=[*texts], generator=seeds, output_type="latent", **call).images
    drawn = backbone.draw_latents(texts, numbers, guidance_scale=scale, steps=3)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (9, *backbone.latent_shape)
    torch.testing.assert_close(decodable(family, pipe, drawn), wanted, rtol=1e-5, atol=1e-5)
    assert not backbone.vae_on_device
    assert isinstance(backbone, SamplingBackbone)


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_a_lora_comes_back_whole(backbone: ImageBackbone, model: Path, tmp_path: Path, targets: str) -> None:
    network: Any = backbone.denoiser
    network.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=backbone.lora_targets[targets]), "npo")
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    x_t, t, prompt = torch.randn(2, *backbone.latent_shape), torch.tensor([100.0, 900.0]), torch.tensor([0, NULL])
    with torch.no_grad():
        wanted = backbone.predict(x_t, t, prompt)
    backbone.save_lora(tmp_path, "npo")
    other = type(backbone)(find_base(str(model)), device="cpu", **sides(backbone.family))
    other.embed(PROMPTS)
    with torch.no_grad():
        plain = other.predict(x_t, t, prompt)
        file = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
        put_into(other.denoiser, layers_in(file, other.denoiser), "npo")
        torch.testing.assert_close(other.predict(x_t, t, prompt), wanted, atol=1e-5, rtol=1e-4)
    assert (plain - wanted).norm() > 1e-2 * wanted.norm()
    pipe = stock(model)
    pipe.load_lora_weights(tmp_path, adapter_name="npo")
    loaded = getattr(pipe, backbone.kind.denoiser).state_dict()
    saved = {name: tensor for name, tensor in network.state_dict().items() if "lora_" in name}
    assert saved
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def drawn_first(*keys: str) -> list[str]:
    """What makes a training on finished samples small."""
    small = ("batch_size=2", "grad_accumulation=1", "samples=4", "sample_grid_steps=2", "samples_cache=null")
    words = (*small, "embeddings_cache=null", "trackers=[]", "device=cpu", "sample_every=0", *keys)
    return [word for key in words for word in ("--set", key)]


def test_the_commands(
    family: str,
    model: Path,
    prompts_file: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """train → the same in two parts with --resume → inspect → sample → compare."""
    sets = quick("learning_rate=0.3", "max_drift=100", "rank=4", "mixed_precision=no")
    if family not in OWN_SIDES:
        sets = drawn_first(
            "learning_rate=0.3", "max_drift=100", "rank=4", "mixed_precision=no", *("height=32", "width=32")
        )
    words = ("--model", model, "--prompts", prompts_file, *sets)
    runs = tmp_path / "whole", tmp_path / "parts"
    assert command("train", *words, "--output", runs[0], "--set", "steps=2") == 0
    assert command("train", *words, "--output", runs[1], "--set", "steps=1") == 0
    assert command("train", "--resume", "--output", runs[1], "--set", "steps=2") == 0
    one, two = (load_file(run / "npo" / "pytorch_lora_weights.safetensors") for run in runs)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert json.loads((runs[0] / "npo" / "npo_config.json").read_text())["family"] == family
    capsys.readouterr()
    assert command("inspect", runs[0], "--model", model, "--json", "--trajectories", 2) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["strength"]["overall"] > 1e-3
    assert facts["decomposition"]["overall"]["size"] > 1e-3
    words = ("--model", model, "--prompt", "a red fox", "--steps", 2, "--device", "cpu", "--guidance-scale", 5)
    words += ("--height", 32, "--width", 32)
    assert command("sample", *words, "--output", tmp_path / "plain") == 0
    assert command("compare", *words, "--npo", runs[0], "--output", tmp_path / "both") == 0
    arms = [tmp_path / "plain", tmp_path / "both" / "without", tmp_path / "both" / "with"]
    plain, without, with_npo = (np.asarray(PIL.Image.open(arm / "00000-0.png")) for arm in arms)
    assert (plain == without).all()
    assert (plain != with_npo).any()


def test_another_familys_negative_weights_are_refused(
    folder: Path,
    finished_run: Path,
    family: str,
    model: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--model", model, "--npo", finished_run, "--prompt", "a", "--steps", 1, "--output", tmp_path / "out")
    assert command("sample", *words) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(error) == 1
    assert "was made for sd15 base" in error[0]
    with pytest.raises(InputError, match=r"an? \S.* model, not of the SD1.5 family"):
        SD15(find_base(str(model)))


def test_the_empty_text_where_the_model_says_so(tmp_path: Path) -> None:
    """SDXL's null prompt is zeros, that of some of its fine-tunes the empty text."""
    PIPELINES["sdxl"]().save_pretrained(tmp_path / "xl")
    file = tmp_path / "xl" / "model_index.json"
    nulls = []
    for zeros in (True, False):
        file.write_text(json.dumps({**json.loads(file.read_text()), "force_zeros_for_empty_prompt": zeros}))
        backbone = SDXL(find_base(str(tmp_path / "xl")), device="cpu")
        backbone.embed(["a cat"])
        nulls.append([part[NULL] for part in backbone._table])
    assert not any(part.any() for part in nulls[0])
    assert all(part.any() for part in nulls[1])


def test_the_size_is_told(tmp_path: Path) -> None:
    """The UNet hears of the size of the pictures that it is trained on."""
    PIPELINES["sdxl"]().save_pretrained(tmp_path / "xl")
    backbone = SDXL(find_base(str(tmp_path / "xl")), height=64, width=40, device="cpu")
    backbone.embed([])
    assert backbone.latent_shape == (4, 32, 20)
    told = backbone._told(tuple(part[:1] for part in backbone._table))
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[64, 40, 0, 0, 64, 40]]
    with pytest.raises(InputError, match="multiples of 4"):
        SDXL(find_base(str(tmp_path / "xl")), height=63, device="cpu")


def test_refiners_and_models_without_t5(tmp_path: Path) -> None:
    PIPELINES["sdxl"]().save_pretrained(tmp_path / "xl")
    file = tmp_path / "xl" / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "addition_embed_type": None}))
    with pytest.raises(InputError, match="addition_embed_type None, not of the SDXL family"):
        load_pipeline(find_base(str(tmp_path / "xl")))
    pipe = PIPELINES["sd3"]()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    pipe.save_pretrained(tmp_path / "small")
    backbone = FAMILIES["sd3"](find_base(str(tmp_path / "small")), device="cpu")
    backbone.embed(PROMPTS)
    assert backbone._table[0].shape[0] == len(PROMPTS) + 1
    shutil.rmtree(tmp_path / "small" / "text_encoder_2")
    with pytest.raises(InputError, match="no weights in text_encoder_2"):
        load_pipeline(find_base(str(tmp_path / "small")))


@pytest.mark.parametrize("negative", [None, "blurry, ugly"])
def test_pictures_are_those_of_a_user_of_the_stock_pipeline(family: str, model: Path, negative: str | None) -> None:
    """Without a negative prompt Qwen-Image is given the customary single space, else it would not be guided."""
    pipe, (height, width) = stock(model), (32, 32)
    settings = Settings(guidance_scale=4.0, steps=2, negative_prompt=negative, height=height, width=width)
    ((_, ours),) = draw(pipe, ["a red fox"], [5], settings, kind=FAMILIES[family].kind)
    call: dict[str, Any] = {"num_inference_steps": 2, "height": height, "width": width, **GUIDED[family](4.0, 1)}
    if negative and family == "flux2-klein":
        call["negative_prompt_embeds"] = pipe.encode_prompt(negative)[0]
    elif negative:
        call["negative_prompt"] = [negative]
    wanted = pipe(prompt=["a red fox"], generator=[torch.Generator().manual_seed(5)], **call).images[0]
    assert ImageChops.difference(ours, wanted).getbbox() is None


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("qwen-image", {"zero_cond_t": True}, "for editing or layers"),
        ("qwen-image", {"guidance_embeds": True}, "without a negative branch"),
        ("z-image", {"siglip_feat_dim": 16}, "an editing model"),
        ("flux2-klein", {"guidance_embeds": True}, "without a negative branch"),
        ("z-image", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised weights"),
    ],
)
def test_networks_that_only_look_like_a_family_s(
    family: str, changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    PIPELINES[family]().save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InputError, match=what):
        find_base(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.iterdir()))
def test_packaged_configurations_have_the_parameters_that_the_table_says(name: str) -> None:
    base = find_base(name)
    config = known_configs(base)[f"{base.kind.denoiser}/config.json"]
    with init_empty_weights():
        network = getattr(diffusers, base.kind.network).from_config(dict(config))
    assert KNOWN[name].parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.slow
def test_the_known_names_have_the_published_sizes() -> None:
    """SDXL's UNet has 2.6 billion parameters (2307.01952); SD3.5's transformers 2.2 and 8.1, from their own configs."""
    sd3 = {"sample_size": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "qk_norm": "rms_norm"}
    medium = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384}
    large = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192}
    with init_empty_weights():
        networks = {
            "sdxl": UNet2DConditionModel.from_config(configs_for(SDXL.kind.layout, {})["unet/config.json"]),
            "sd3.5-medium": SD3Transformer2DModel(**sd3, **medium, dual_attention_layers=tuple(range(13))),
            "sd3.5-large": SD3Transformer2DModel(**sd3, **large),
        }
    for name, network in networks.items():
        assert KNOWN[name].parameters == sum(p.numel() for p in network.parameters()), name


def test_presets_and_defaults_follow_the_family(model: Path, family: str) -> None:
    assert presets_for(find_base(str(model))).keys() == FAMILIES[family].kind.presets.keys()
    assert all(set(presets_for(base)) == {"full", "lora"} for base in (find_base(name) for name in KNOWN))
    assert presets_for(find_base("juggernaut-xl")) is SDXL.kind.presets
    assert defaults(find_base(str(model))).family == family


@pytest.mark.parametrize("family", ["sd15", *NAMES])
def test_a_sketch_costs_what_the_model_costs(family, tmp_path):
    PIPELINES[family]().save_pretrained(tmp_path)
    base, prompts = find_base(str(tmp_path)), ["a red circle", "a blue square"]
    recipe = build_recipe(
        {"batch_size": 2, "pool_size": 4, "grid_steps": 3, "rank": 2, "trackers": [], "device": "cpu"}
    )
    how = {} if family == "sd15" else sides(family)
    real = FAMILIES[family](base, device="cpu", **how)
    assert base.family == family
    sketch = FAMILIES[family].sketch(base, **how)
    assert all(parameter.is_meta for parameter in sketch.denoiser.parameters())
    assert sketch.latent_shape == real.latent_shape
    assert sketch.bytes_per_prompt == real.bytes_per_prompt
    one, other = (dry_run(backbone, recipe, prompts) for backbone in (real, sketch))
    assert (one.trained_parameters, one.network_parameters) == (other.trained_parameters, other.network_parameters)
    for ours, theirs in zip(one.memory, other.memory, strict=True):
        assert ours.name == theirs.name
        assert ours.bytes == pytest.approx(theirs.bytes, rel=0.05, abs=2 * real.bytes_per_prompt), ours.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("sd15", "859,520,964"),
        pytest.param("sdxl", "2,567,463,684", marks=pytest.mark.exhaustive),
        ("z-image", "6,154,908,736"),
    ],
)
def test_dry_run_of_a_known_model_without_its_weights(model, parameters, capsys):
    assert run(selfnpo_image, ["train", "--model", model, "--dry-run"], name="selfnpo-image") == 0
    said = capsys.readouterr().out
    assert f"of {parameters}" in said
    assert "together on the device" in said
