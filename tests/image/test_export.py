"""Negative weights in every form that they leave in, loaded by who reads them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.image.conftest import Command, quick, selfnpo
from tests.tiny import sample, sd15, sdxl

from selfnpo_core import NegativeAdapters, NegativeDelta, attach_npo
from selfnpo_core.errors import InputError
from selfnpo_core.negative import Factors, nearest, relative_error
from selfnpo_core.weights.inspection import effect_errors
from selfnpo_core.weights.lora_file import read_lora
from selfnpo_core.weights.lora_layers import layers_in
from selfnpo_core.weights.npo_folder import load_npo
from selfnpo_core.weights.offsets import offset_of, to_lora
from selfnpo_image import kohya
from selfnpo_image.families import FAMILIES, find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sd15 import SD15
from selfnpo_image.sdxl import SDXL
from selfnpo_image.single_file import configs_for
from selfnpo_image.unets import UNET_TARGETS

ENDS = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
XL_ENDS = ["add_embedding.linear_1", "add_embedding.linear_2"]


def trained(folder: Path, prompts_file: Path, output: Path, kind: str) -> Path:
    """Two updates."""
    sets = quick("steps=2", "learning_rate=0.01", f"train={kind}")
    words = ("--model", folder, "--prompts", prompts_file, "--output", output, "--set", "max_drift=100")
    assert selfnpo("train", *words, *sets) == 0
    return output


@pytest.fixture(scope="module")
def full_run(folder: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(folder, prompts_file, tmp_path_factory.mktemp("runs") / "full", "full")


@pytest.fixture(scope="module")
def lora_run(folder: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(folder, prompts_file, tmp_path_factory.mktemp("runs") / "lora", "lora")


def loaded(folder: Path) -> Any:
    return load_pipeline(find_base(str(folder)))


@torch.no_grad()
def moved(folder: Path, delta: dict[str, torch.Tensor], by: float) -> Any:
    """The stock pipeline at θ + by·δ on all rows."""
    pipe = loaded(folder)
    for name, tensor in delta.items():
        pipe.unet.get_parameter(name).add_(by * tensor)
    return pipe


def test_the_offset_of_a_lora_is_what_it_does(lora_run: Path, folder: Path) -> None:
    npo = load_npo(lora_run)
    pipe = loaded(folder)
    plain = sample("sd15", pipe)
    with NegativeDelta.attach(pipe, offset_of(npo), beta=0.7):
        expected = sample("sd15", pipe)
    assert (plain - expected).abs().max() > 1e-2
    with attach_npo(pipe, lora_run, beta=0.7):
        torch.testing.assert_close(sample("sd15", pipe), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_is_the_one_of_training(folder: Path, tmp_path: Path, rslora: bool) -> None:
    """Where alpha is not the rank, and differs from layer to layer."""
    backbone = SD15(find_base(str(folder)), device="cpu")
    unet: Any = backbone.denoiser
    patterns = {"rank_pattern": {"to_v": 2}, "alpha_pattern": {"attn1.to_q": 12}}
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v"], use_rslora=rslora, **patterns)
    unet.add_adapter(config, "npo")
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    backbone.save_lora(tmp_path, "npo")
    delta = offset_of(load_npo(tmp_path))
    assert delta
    for name, tensor in delta.items():
        layer = unet.get_submodule(name.removesuffix(".weight"))
        torch.testing.assert_close(tensor, layer.get_delta_weight("npo").detach(), atol=1e-5, rtol=1e-5)


def test_the_nearest_lora() -> None:
    """Exact where the rank suffices; else off by the singular values left out; convolutions too."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(12, 3, generator=generator), torch.randn(3, 8, 3, 3, generator=generator)
    low = (left @ right.flatten(1)).reshape(12, 8, 3, 3)
    torch.testing.assert_close(nearest(low, 3).product(), low, atol=1e-4, rtol=1e-4)
    assert nearest(low, 3).up.shape == (12, 3, 1, 1)
    full = torch.randn(12, 20, generator=generator)
    values = torch.linalg.svdvals(full)
    for rank in (1, 4, 12, 99):
        error = relative_error({"w": full}, {"w": nearest(full, rank).product()})
        assert error == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-5)
    lora, rest = to_lora({"a.weight": full, "a.bias": full[0], "norm.weight": full[1]}, 4)
    assert (list(lora), sorted(rest)) == (["a"], ["a.bias", "norm.weight"])
    assert relative_error({"w": full, "b": full}, {"w": full}) == pytest.approx(0.5**0.5)
    with pytest.raises(InputError, match="rank of 0"):
        to_lora({"a.weight": full}, 0)


def test_effects_shrink_with_the_rank_and_whole_weights_have_no_error(full_run: Path, folder: Path) -> None:
    delta = offset_of(load_npo(full_run))
    backbone = SD15(find_base(str(folder)), device="cpu")
    before = {name: p.clone() for name, p in backbone.denoiser.named_parameters()}
    others: dict[str, Any] = {"same": delta, "none": {}}
    for rank in (2, 16):
        others[str(rank)] = {f"{layer}.weight": f.product() for layer, f in to_lora(delta, rank)[0].items()}
    errors = effect_errors(backbone, delta, others, rows=2, steps=3)
    assert errors["same"] == 0
    assert errors["none"] == pytest.approx(1)
    assert errors["16"] < errors["2"] < 1
    assert all(torch.equal(before[name], p) for name, p in backbone.denoiser.named_parameters())


def test_a_lora_leaves_as_it_is(lora_run: Path, tmp_path: Path, command: Command) -> None:
    assert command("export", "--npo", lora_run, "--format", "diffusers", "--output", tmp_path / "out") == 0
    for file in (lora_run / "npo").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_an_export_is_pushed(
    lora_run: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taken: list[Any] = []
    api = SimpleNamespace(
        create_repo=lambda repo, **options: taken.append((repo, options["private"])) or f"https://hub/{repo}",
        create_commit=lambda repo, added, **_: taken.extend(sorted(each.path_in_repo for each in added)),
    )
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    words = ("export", "--npo", lora_run, "--format", "diffusers", "--output")
    assert command(*words, tmp_path / "out", "--push-to-hub", "someone/negative", "--private") == 0
    assert taken == [("someone/negative", True), *sorted(file.name for file in (tmp_path / "out").iterdir())]
    assert "README.md" in taken
    assert "and in https://hub/someone/negative" in capsys.readouterr().out
    assert command(*words, tmp_path / "none", "--private") == 2
    assert not (tmp_path / "none").exists()


def test_a_lora_of_whole_weights(
    full_run: Path, folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """It loads in a stock pipeline, and says how far it is from the weights."""
    words = ("export", "--npo", full_run, "--format", "lora", "--output")
    assert command(*words, tmp_path / "none") == 2
    assert "--rank" in capsys.readouterr().err
    assert command(*words, tmp_path / "lora", "--rank", 32) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("matrices", "all weights", "effect"))
    npo = load_npo(tmp_path / "lora")
    assert npo.config is not None
    assert (npo.config.train, npo.config.base_hash) == ("lora", load_npo(full_run).config.base_hash)  # type: ignore[union-attr]
    near = {f"{layer}.weight": f.product() for layer, f in to_lora(offset_of(load_npo(full_run)), 32)[0].items()}
    pipe = loaded(folder)
    with NegativeDelta.attach(pipe, near):
        expected = sample("sd15", pipe)
    pipe.load_lora_weights(tmp_path / "lora", adapter_name="npo")
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        torch.testing.assert_close(sample("sd15", pipe), expected, atol=1e-4, rtol=1e-3)


def test_merged_is_the_second_model(lora_run: Path, folder: Path, tmp_path: Path, command: Command) -> None:
    words = ("--npo", lora_run, "--format", "merged", "--beta", 0.5, "--output", tmp_path / "merged")
    assert command("export", *words) == 0
    merged = UNet2DConditionModel.from_pretrained(tmp_path / "merged").state_dict()
    wanted = moved(folder, offset_of(load_npo(lora_run)), 0.5).unet.state_dict()
    assert merged.keys() == wanted.keys()
    assert all(torch.allclose(merged[name], wanted[name], atol=1e-6) for name in wanted)
    pipe = loaded(folder)
    theta = pipe.unet.state_dict()
    with NegativeDelta.attach(pipe, {name: merged[name] - theta[name] for name in merged}):
        expected = sample("sd15", pipe)
    with attach_npo(pipe, lora_run, beta=0.5):
        torch.testing.assert_close(sample("sd15", pipe), expected, atol=1e-4, rtol=1e-3)
    assert command("export", *words) == 2  # never over what is there


@pytest.mark.parametrize("which", ["lora_run", "full_run"])
def test_neon(which: str, folder: Path, tmp_path: Path, command: Command, request: pytest.FixtureRequest) -> None:
    """θ − w·δ on all rows, merged and, of a LoRA, as a LoRA."""
    run: Path = request.getfixturevalue(which)
    wanted = sample("sd15", moved(folder, offset_of(load_npo(run)), -0.5))
    words = ("export", "--npo", run, "--format", "neon", "--strength", 0.5, "--output")
    assert command(*words, tmp_path / "merged", "--into", "merged") == 0
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        sample("sd15", load_pipeline(find_base(str(folder)), unet=unet)), wanted, atol=1e-4, rtol=1e-3
    )
    if which == "lora_run":
        assert command(*words, tmp_path / "lora") == 0
        pipe = loaded(folder)
        pipe.load_lora_weights(tmp_path / "lora")
        torch.testing.assert_close(sample("sd15", pipe), wanted, atol=1e-4, rtol=1e-3)


def _real_order() -> Any:
    """A tiny SDXL whose blocks follow one another as in the real one: attention in the inner levels."""
    pipe = sdxl()
    config = dict(pipe.unet.config)
    config["down_block_types"] = ("DownBlock2D", "CrossAttnDownBlock2D")
    config["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    pipe.register_modules(unet=UNet2DConditionModel.from_config(config).eval())
    return pipe


@pytest.mark.parametrize(
    ("family", "made", "kind"),
    [("sd15", sd15, StableDiffusionPipeline), ("sdxl", _real_order, StableDiffusionXLPipeline)],
)
def test_every_layer_comes_back_from_kohyas_names(family: str, made: Any, kind: Any, tmp_path: Path) -> None:
    """Read by diffusers, and by ourselves: all layers, no difference, alpha as it was."""
    pipe, generator = made(), torch.Generator().manual_seed(0)
    targets = [*UNET_TARGETS["all"], *ENDS, *(XL_ENDS if family == "sdxl" else [])]
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=targets), "npo")
    lora = {}
    for name, down in pipe.unet.named_modules():
        if name.endswith(".lora_A.npo"):
            up = pipe.unet.get_submodule(name.replace("lora_A", "lora_B"))
            shapes = down.weight.shape, up.weight.shape
            random = [torch.randn(shape, generator=generator) for shape in shapes]
            lora[name.removesuffix(".lora_A.npo")] = Factors(down=random[0], up=random[1], alpha=6.0)
    linear_or_conv = [n for n, m in made().unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert set(lora) == set(linear_or_conv)
    save_file(kohya.tensors(lora, FAMILIES[family].kind.kohya, pipe.unet.config), tmp_path / "k.safetensors")
    other = made()
    other.load_lora_weights(tmp_path / "k.safetensors", adapter_name="k")
    assert isinstance(other, kind)
    ours = layers_in(read_lora(tmp_path / "k.safetensors"), pipe.unet)
    assert ours.keys() == lora.keys()
    for layer, factors in lora.items():
        assert torch.equal(ours[layer].down, factors.down)
        assert ours[layer].alpha == factors.alpha
        read = other.unet.get_submodule(layer)
        assert torch.equal(read.lora_A["k"].weight, factors.down)
        assert torch.equal(read.lora_B["k"].weight, factors.up)
        assert read.scaling["k"] == 3.0


def test_the_map_of_names() -> None:
    """Names as they stand in files of kohya's trainer."""
    golden = {
        "conv_in": "input_blocks.0.0",
        "down_blocks.0.resnets.1.conv1": "input_blocks.2.0.in_layers.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.1.attentions.0.transformer_blocks.1.norm3": "input_blocks.4.1.transformer_blocks.1.norm3",
        "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
        "down_blocks.2.resnets.0.conv_shortcut": "input_blocks.7.0.skip_connection",
        "mid_block.attentions.0.transformer_blocks.9.ff.net.2": "middle_block.1.transformer_blocks.9.ff.net.2",
        "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
        "up_blocks.0.attentions.2.proj_out": "output_blocks.2.1.proj_out",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": (
            "output_blocks.3.1.transformer_blocks.0.attn2.to_out.0"
        ),
        "up_blocks.2.resnets.2.conv2": "output_blocks.8.0.out_layers.3",
        "add_embedding.linear_2": "label_emb.0.2",
        "time_embedding.linear_1": "time_embed.0",
        "conv_out": "out.2",
    }
    unet = configs_for(SDXL.kind.layout, {})["unet/config.json"]
    assert {layer: kohya.first_release(layer, unet) for layer in golden} == golden
    factors = Factors(down=torch.zeros(4, 8), up=torch.zeros(8, 4), alpha=2.0)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    names = {"sd15": layer, "sdxl": "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0"}
    for family, name in names.items():
        stem = "lora_unet_" + name.replace(".", "_")
        written = kohya.tensors({layer: factors}, FAMILIES[family].kind.kohya, unet)
        assert sorted(written) == [f"{stem}.{end}" for end in ("alpha", "lora_down.weight", "lora_up.weight")]
        assert written[f"{stem}.alpha"].item() == 2.0
    with pytest.raises(InputError, match="no name in kohya's layout"):
        kohya.first_release("encoder_hid_proj", unet)


def test_kohya_by_the_command(lora_run: Path, folder: Path, tmp_path: Path, command: Command) -> None:
    """Its file does in a stock pipeline what the run does; the workflow hooks it onto the negative side."""
    assert command("export", "--npo", lora_run, "--format", "kohya", "--output", tmp_path / "npo") == 0
    pipe = loaded(folder)
    with attach_npo(pipe, lora_run, beta=1.0):
        expected = sample("sd15", pipe)
    pipe.load_lora_weights(tmp_path / "npo.safetensors", adapter_name="npo")
    with NegativeAdapters.attach(pipe, {"npo": 1.0}):
        assert torch.equal(sample("sd15", pipe), expected)
    with safe_open(str(tmp_path / "npo.safetensors"), framework="pt") as file:
        assert file.metadata()["selfnpo_base_model"] == str(folder)
    nodes = json.loads((tmp_path / "npo.comfyui.json").read_text())
    sampler = next(node["inputs"] for node in nodes.values() if node["class_type"] == "KSampler")
    positive, negative = (nodes[sampler[side][0]] for side in ("positive", "negative"))
    assert positive["class_type"] == "CLIPTextEncode"
    hook = nodes[negative["inputs"]["hooks"][0]]
    assert (hook["class_type"], hook["inputs"]["lora_name"]) == ("CreateHookLoraModelOnly", "npo.safetensors")
    for node in nodes.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in nodes


def test_what_export_refuses(
    lora_run: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object) -> str:
        assert command("export", "--npo", lora_run, "--output", tmp_path / "x", *words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
        assert len(lines) == 1
        return lines[0]

    assert "--strength is w of --format neon" in refused("--format", "neon")
    assert "--strength is w of --format neon" in refused("--format", "kohya", "--strength", 1)
    assert "is a LoRA already" in refused("--format", "lora", "--rank", 4)
    assert "--rank is for" in refused("--format", "diffusers", "--rank", 4)
    assert "--into is for" in refused("--format", "diffusers", "--into", "lora")
    assert "--beta is for" in refused("--format", "diffusers", "--beta", 1)
    strange = tmp_path / "strange" / "pytorch_lora_weights.safetensors"
    strange.parent.mkdir()
    npo = load_npo(lora_run)
    save_file({**npo.tensors, "unet.x.lora_magnitude_vector": torch.ones(3)}, strange)
    with pytest.raises(InputError, match=r"is a DoRA .*'unet\.x\.lora_magnitude_vector'"):
        load_npo(strange)
    assert not (tmp_path / "x").exists()
    assert load_file(lora_run / "npo" / "pytorch_lora_weights.safetensors").keys() == npo.tensors.keys()
