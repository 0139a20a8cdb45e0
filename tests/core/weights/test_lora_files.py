"""LoRA files as people have them: each form → what happens. All are of one small UNet and made here."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.core.adapters.reference import assert_same, two_model_loop
from tests.tiny import PIPELINES, sample, sd15
from torch import Tensor

from selfnpo_core import attach_npo
from selfnpo_core.adapters.attach import ETA, load_lora
from selfnpo_core.errors import InputError
from selfnpo_core.negative import Factors
from selfnpo_core.weights.inspection import describe, inspect_npo
from selfnpo_core.weights.layer_names import first_release, layers_of
from selfnpo_core.weights.lora_file import read_lora
from selfnpo_core.weights.lora_layers import layers_in, loaded_into
from selfnpo_core.weights.npo_folder import load_npo

ALPHA, RANK = 3.0, 2
BLOCK = "down_blocks.0.attentions.0"
ATTENTION = tuple(f"{BLOCK}.transformer_blocks.0.attn{n}.{to}" for n in (1, 2) for to in ("to_q", "to_k", "to_out.0"))
OTHERS = (f"{BLOCK}.proj_in", f"{BLOCK}.transformer_blocks.0.ff.net.2", "conv_in", "mid_block.resnets.0.conv1")
QK = ("to_q", "to_k")
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return sd15()


def lora(pipe: Any, layers: tuple[str, ...], alpha: float = ALPHA) -> dict[str, Factors]:
    """Random factors of these layers."""
    generator, own = torch.Generator().manual_seed(0), layers_of(pipe.unet)
    made = {}
    for layer in layers:
        rows, columns, *kernel = own[layer].weight.shape
        down = 0.3 * torch.randn(RANK, columns, *kernel, generator=generator)
        up = 0.3 * torch.randn(rows, RANK, *(1 for _ in kernel), generator=generator)
        made[layer] = Factors(down=down, up=up, alpha=alpha)
    return made


def named(layers: dict[str, Factors], name: Callable[[str], str], *ends: str) -> Tensors:
    """ends: of the first factor, the second and alpha."""
    tensors = {}
    for layer, factors in layers.items():
        parts = (factors.down, factors.up, torch.tensor(factors.alpha))
        tensors |= {name(layer) + end: part.clone() for end, part in zip(ends, parts, strict=False)}
    return tensors


def kohya(layer: str) -> str:
    return "lora_unet_" + layer.replace(".", "_")


KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT = (".lora_A.weight", ".lora_B.weight")


def old(layer: str) -> str:
    """As diffusers' first releases named layers of attention."""
    path, _, to = layer.removesuffix(".0").rpartition(".")
    return f"{path}.processor.{to}_lora"


def configured(prefix: str, **settings: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"{prefix}{key}": value for key, value in settings.items()})}


READ: dict[str, tuple[tuple[str, ...], Callable[[str], str], tuple[str, ...], dict[str, str], float]] = {
    "kohya": (ATTENTION + OTHERS, kohya, KOHYA, {}, ALPHA),
    "kohya, no alpha": (ATTENTION + OTHERS, kohya, KOHYA[:2], {}, RANK),
    "LyCORIS, plain": (ATTENTION + OTHERS, lambda n: kohya(n).replace("lora_unet_", "lycoris_"), KOHYA, {}, ALPHA),
    "kohya, first release": (ATTENTION + OTHERS, lambda n: "lora_unet_" + released(n, "_"), KOHYA, {}, ALPHA),
    "ComfyUI": (ATTENTION + OTHERS, lambda n: "diffusion_model." + released(n, "."), KOHYA, {}, ALPHA),
    "ComfyUI, diffusers' layers": (ATTENTION + OTHERS, lambda n: f"diffusion_model.{n}", KOHYA, {}, ALPHA),
    "PEFT": (ATTENTION + OTHERS, lambda n: f"unet.{n}", PEFT, configured("unet.", lora_alpha=ALPHA), ALPHA),
    "PEFT, rsLoRA": (
        ATTENTION + OTHERS,
        lambda n: f"unet.{n}",
        PEFT,
        configured("unet.", lora_alpha=ALPHA, use_rslora=True),
        ALPHA * RANK**0.5,
    ),
    "PEFT, no prefix": (ATTENTION + OTHERS, str, PEFT, configured("", lora_alpha=ALPHA), ALPHA),
    "PEFT, its own saver's": (ATTENTION + OTHERS, lambda n: f"base_model.model.{n}", PEFT, {}, RANK),
    "PEFT, twice wrapped": (ATTENTION + OTHERS, lambda n: f"base_model.model.unet.{n}", PEFT, {}, RANK),
    "PEFT, with alpha": (ATTENTION + OTHERS, lambda n: f"transformer.{n}", (*PEFT, ".alpha"), {}, ALPHA),
    "PEFT, adapter's name": (ATTENTION, str, (".lora_A.default.weight", ".lora_B.default.weight"), {}, RANK),
    "diffusers old": (ATTENTION, old, (".down.weight", ".up.weight"), {}, RANK),
    "diffusers old, prefix": (ATTENTION, lambda n: f"unet.{old(n)}", (".down.weight", ".up.weight"), {}, RANK),
    "diffusers old, alpha": (ATTENTION, old, (".down.weight", ".up.weight", ".alpha"), {}, ALPHA),
    "diffusers old, dotted alpha": (
        ATTENTION,
        lambda n: n,
        (".lora.down.weight", ".lora.up.weight", ".lora.alpha"),
        {},
        ALPHA,
    ),
    "diffusers": (ATTENTION + OTHERS, lambda n: f"unet.{n}", (".lora.down.weight", ".lora.up.weight"), {}, RANK),
}


def released(layer: str, between: str) -> str:
    config = {"layers_per_block": 1, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return first_release(layer, config).replace(".", between)


@pytest.mark.parametrize("form", READ)
def test_every_naming_is_read_by_the_layers_of_the_network(form: str, pipe: Any, tmp_path: Path) -> None:
    layers, name, ends, header, alpha = READ[form]
    made = lora(pipe, layers)
    save_file(named(made, name, *ends), tmp_path / "lora.safetensors", header or None)
    file = read_lora(tmp_path / "lora.safetensors")
    found = layers_in(file, pipe.unet)
    assert found.keys() == made.keys()
    for layer, factors in made.items():
        assert torch.equal(found[layer].down, factors.down)
        assert torch.equal(found[layer].up, factors.up)
        assert found[layer].alpha == pytest.approx(alpha)
    told = len(ends) == 3 or bool(header)
    assert file.guessed == (0 if told else len(layers))
    assert (file.text, file.embeddings, file.left_out()) == ({}, 0, "")
    facts = describe(inspect_npo(tmp_path / "lora.safetensors"))
    assert (facts["layers"], facts["ranks"], facts["alpha_guessed"]) == (len(layers), [RANK], file.guessed)
    sizes = [float(factors.product().norm()) * alpha / ALPHA for factors in made.values()]
    assert facts["norm"] == pytest.approx(float(torch.tensor(sizes).norm()), rel=1e-4)


@pytest.mark.parametrize("form", ["kohya", "kohya, first release", "ComfyUI", "PEFT, no prefix", "diffusers old"])
def test_what_was_read_acts(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Against a loop of two models; and, on both branches, against one changed by hand."""
    layers, name, ends, header, alpha = READ[form]
    pipe, changed = sd15(), sd15().unet
    made = lora(pipe, layers)
    save_file(named(made, name, *ends), tmp_path / "lora.safetensors", header or None)
    with torch.no_grad():
        for layer, factors in made.items():
            changed.get_parameter(f"{layer}.weight").add_(factors.product() * alpha / ALPHA)
    with attach_npo(pipe, tmp_path / "lora.safetensors"):
        assert_same(sample("sd15", pipe), two_model_loop(pipe, sd15().unet, changed))
    load_lora(pipe, tmp_path / "lora.safetensors", ETA)
    assert_same(sample("sd15", pipe), two_model_loop(pipe, changed, changed))
    assert ("its strength is a guess" in caplog.text) == (len(ends) == 2 and not header)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = sd15()
    tensors = named(lora(pipe, ATTENTION), kohya, *KOHYA)
    stored = {name: tensor if name.endswith("alpha") else tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(stored, tmp_path / "lora.safetensors")
    save_file({name: tensor.float() for name, tensor in stored.items()}, tmp_path / "wide.safetensors")
    facts = describe(inspect_npo(tmp_path / "lora.safetensors"))
    assert str(dtype).removeprefix("torch.") in facts["dtypes"]
    assert (facts["finite"], facts["has_effect"]) == (True, True)
    drawn = []
    for file in ("lora", "wide"):
        with attach_npo(pipe, tmp_path / f"{file}.safetensors"):
            drawn.append(sample("sd15", pipe))
    assert torch.equal(*drawn)


def one(name: str, *shape: int) -> Tensors:
    return {name: torch.ones(shape)}


STEM = kohya(ATTENTION[0])
REFUSED: dict[str, tuple[Tensors, str]] = {
    "LoHa": (one(f"{STEM}.hada_w1_a", 2, 2) | one(f"{STEM}.alpha"), "is a LoHa"),
    "LoKr": (one(f"{STEM}.lokr_w1", 2, 2), "is a LoKr"),
    "LoKr of diffusers": (one(f"unet.{ATTENTION[0]}.lokr_w2_a", 2, 2), "is a LoKr"),
    "OFT": (one(f"{STEM}.oft_blocks", 2, 2, 2), "is an OFT"),
    "OFT of PEFT": (one(f"base_model.model.{ATTENTION[0]}.oft_R.weight", 2, 2), "is an OFT"),
    "full": (one(f"{STEM}.diff", 2, 2), "whole differences"),
    "biases": (one(f"{STEM}.diff_b", 2), "whole differences"),
    "IA3": (one(f"{STEM}.weight", 2) | {f"{STEM}.on_input": torch.tensor(True)}, "is an IA³"),
    "DoRA of kohya": (one(f"{STEM}.dora_scale", 2, 1), "is a DoRA"),
    "DoRA of PEFT": (one(f"unet.{ATTENTION[0]}.lora_magnitude_vector", 2), "is a DoRA"),
    "Tucker": (one(f"{kohya('conv_in')}.lora_mid.weight", 2, 2, 3, 3), "Tucker"),
    "GLoRA": (one(f"{STEM}.a1.weight", 2, 2), "GLoRA"),
    "norms": (one(f"{kohya('mid_block.resnets.0.norm1')}.w_norm", 2), "with norms"),
    "Control-LoRA": ({"lora_controlnet": torch.zeros(1)}, "Control-LoRA"),
    "biases of PEFT": (one(f"unet.{ATTENTION[0]}.lora_B.bias", 2), "LoRA with biases"),
    "scaled": (one(f"{STEM}.scale_weight"), "scaled 8 bits"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_adapters_are_refused_by_name(form: str, pipe: Any, tmp_path: Path) -> None:
    """Also where some of the layers are plain."""
    tensors, words = REFUSED[form]
    plain = named(lora(pipe, ATTENTION), kohya, *KOHYA)
    for number, content in enumerate((tensors, plain | tensors)):
        file = tmp_path / f"{number}.safetensors"
        save_file(content, file)
        for read in (load_npo, inspect_npo, read_lora):
            with pytest.raises(InputError, match=words) as error:
                read(file)
            assert str(error.value).startswith(str(file))
            assert "train longer" not in str(error.value)


NO_LORA: dict[str, tuple[Tensors, str]] = {
    "checkpoint": (
        one("model.diffusion_model.input_blocks.0.0.weight", 2) | one("cond_stage_model.transformer.x", 2),
        "is a whole checkpoint",
    ),
    "refiner": (
        one("model.diffusion_model.input_blocks.0.0.weight", 2) | one("conditioner.embedders.0.model.x", 2),
        "SDXL refiner",
    ),
    "EDM": (one("edm_mean", 4) | one("model.diffusion_model.input_blocks.0.0.weight", 2), "EDM checkpoint"),
    "UNet of ComfyUI": (one("model.diffusion_model.input_blocks.0.0.weight", 2), "a denoiser alone"),
    "UNet": (one("down_blocks.0.resnets.0.conv1.weight", 2), "a denoiser alone"),
    "transformer": (one("transformer_blocks.0.attn.to_q.weight", 2), "a denoiser alone"),
    "VAE": (one("decoder.conv_in.weight", 2), "an autoencoder"),
    "text encoder": (one("text_model.encoder.layers.0.x.weight", 2), "a text encoder"),
    "textual inversion": (one("emb_params", 2, 8), "a textual inversion"),
    "textual inversion of SDXL": (one("clip_g", 2, 8) | one("clip_l", 2, 8), "a textual inversion"),
    "IP-Adapter": (one("image_proj.proj.weight", 2), "an IP-Adapter"),
    "ControlNet": (one("control_model.zero_convs.0.0.weight", 2), "a ControlNet"),
    "nothing": ({}, "holds neither"),
    "unknown": (one("some.thing", 2), r"holds neither a LoRA nor an offset \('some.thing'"),
}


@pytest.mark.parametrize("kind", NO_LORA)
def test_other_files_are_called_what_they_are(kind: str, tmp_path: Path) -> None:
    tensors, words = NO_LORA[kind]
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(InputError, match=words):
        load_npo(tmp_path / "file.safetensors")


def test_damage_and_other_models_are_refused(pipe: Any, tmp_path: Path) -> None:
    made, file = lora(pipe, ATTENTION), tmp_path / "lora.safetensors"
    plain = named(made, kohya, *KOHYA)

    def refused(tensors: Tensors, words: str, header: dict[str, str] | None = None) -> None:
        save_file(tensors, file, header)
        with pytest.raises(InputError, match=words):
            attach_npo(pipe, file)

    refused({n: t for n, t in plain.items() if n != f"{STEM}.lora_up.weight"}, "lacks the second factor")
    refused({n: t for n, t in plain.items() if n != f"{STEM}.lora_down.weight"}, "lacks the first factor")
    refused({**plain, f"{STEM}.lora_up.weight": torch.ones(32, 7)}, "do not fit")
    refused({**plain, f"{STEM}.alpha": torch.ones(3)}, "alpha of .* is no number")
    refused({**plain, f"{STEM}.lora_up.weight": torch.ones(32, 2, dtype=torch.int8)}, "int8, quantised")
    refused({**plain, "something.else": torch.ones(1)}, r"1 tensors beside its LoRA .*'something\.else'")
    refused({**plain, f"{STEM}.lora_up.weight": torch.full((32, 2), torch.nan)}, "NaN or infinite")
    refused({n: torch.zeros_like(t) if "up" in n else t for n, t in plain.items()}, "no effect.*give another")
    refused({n: torch.zeros_like(t) if "alpha" in n else t for n, t in plain.items()}, "no effect")
    wide = {**made, ATTENTION[0]: Factors(down=torch.ones(2, 64), up=torch.ones(32, 2), alpha=1.0)}
    header = {"ss_base_model_version": "sdxl_base_v1-0"}
    refused(named(wide, kohya, *KOHYA), "of a weight of 32×64.*for sdxl_base_v1-0 by its header", header)
    more = {**made, "up_blocks.9.attentions.0.proj_in": made[ATTENTION[0]]}
    refused(named(more, kohya, *KOHYA), r"of its 7 layers the UNet2DConditionModel takes 6 \(not 'up_blocks_9")
    flux = {"double_blocks.0.img_attn.qkv": made[ATTENTION[0]]}
    refused(named(flux, lambda n: f"diffusion_model.{n}", *PEFT), "of its 1 layers .* takes 0")
    refused(plain, "predicts 'v_prediction' by its header", {"ss_v_parameterization": "True"})
    refused(plain, "predicts 'v_prediction' by its header", {"modelspec.prediction_type": "v"})
    refused(plain, "DoRA by its configuration", configured("unet.", use_dora=True))
    default, second = (named(made, str, f".lora_A.{n}.weight", f".lora_B.{n}.weight") for n in ("default", "second"))
    refused(default | second, r"layer 'down_.*attn1\.to_.*' twice \('.*default.*second.*give a file of one LoRA")
    twice = named(made, str, *PEFT) | named(made, lambda n: f"unet.{n}", *PEFT)
    refused(twice, r"has the layer '.*' twice \('down_.* and 'unet\.down_")
    refused(plain | {f"{STEM}_lora.alpha": torch.ones(())}, "has the layer '.*' twice")
    text = {f"lora_te_{TEXT.replace('.', '_')}{end}": torch.ones(2, 2) for end in KOHYA[:2]}
    refused(text, "no layer of a denoiser, but 1 layers of text_encoder")
    assert not [module for module in pipe.unet.modules() if hasattr(module, "lora_A") and len(module.lora_A)]


@pytest.mark.parametrize("how", ["lora_te_{}", "lora_te1_{}", "text_encoder.{}", "text_encoder.old"])
def test_text_encoders_and_embeddings(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On the negative branch they are left out, named and counted; a preference's act on the text encoder."""
    pipe, file = sd15(), tmp_path / "lora.safetensors"
    generator = torch.Generator().manual_seed(3)
    factors = Factors(
        down=torch.randn(2, 32, generator=generator), up=torch.randn(32, 2, generator=generator), alpha=ALPHA
    )
    dotted = how.startswith("text_encoder")
    name = how.format(TEXT if dotted else TEXT.replace(".", "_"))
    ends = (".lora_A.weight", ".lora_B.weight", ".alpha") if dotted else KOHYA
    if how.endswith("old"):
        name, ends = f"text_encoder.{TEXT.replace('q_proj', 'to_q_lora')}", (".down.weight", ".up.weight", ".alpha")
    text = named({TEXT: factors}, lambda _: name, *ends)
    bundled = {f"bundle_emb.{word}.string_to_param.*": torch.ones(1, 8) for word in ("ugly", "bad")}
    plain = named(lora(pipe, ATTENTION), kohya, *KOHYA)
    save_file(plain, tmp_path / "plain.safetensors")
    save_file(plain | text | bundled, file)
    with attach_npo(pipe, tmp_path / "plain.safetensors"):
        wanted = sample("sd15", pipe)
    with caplog.at_level(logging.WARNING), attach_npo(pipe, file):
        assert torch.equal(sample("sd15", pipe), wanted)
    assert "left out are 1 layers of text_encoder and 2 bundled embeddings" in caplog.text
    caplog.clear()
    assert load_lora(pipe, file, ETA) == {"text_encoder"}
    assert "left out are 2 bundled embeddings" in caplog.text
    other = sd15()
    load_lora(other, tmp_path / "plain.safetensors", ETA)
    layer = TEXT if hasattr(other.text_encoder, "text_model") else TEXT.removeprefix("text_model.")
    with torch.no_grad():
        other.text_encoder.get_parameter(f"{layer}.weight").add_(factors.product())
    assert_same(sample("sd15", pipe), sample("sd15", other))


def test_pefts_folder(pipe: Any, tmp_path: Path) -> None:
    """adapter_model.safetensors, whose alpha is in the file beside."""
    tensors = named(lora(pipe, ATTENTION), lambda n: f"base_model.model.{n}", *PEFT)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 5, "peft_type": "LORA"}))
    npo = load_npo(tmp_path)
    assert npo.lora is not None
    assert (npo.lora.guessed, {f.alpha for f in npo.lora.layers.values()}) == (0, {5.0})


def test_layers_of_two_other_text_encoders_are_two(tmp_path: Path, pipe: Any) -> None:
    text = {f"clip_{n}.x{end}": torch.ones(2, 2) for n in "lg" for end in PEFT}
    save_file(named(lora(pipe, ATTENTION), kohya, *KOHYA) | text, tmp_path / "lora.safetensors")
    assert read_lora(tmp_path / "lora.safetensors").left_out() == "2 layers of other text encoders"


def of_wan(file: Path, ends: tuple[str, ...], header: dict[str, str] | None = None) -> Tensor:
    """A file in the names of Wan's authors, and the product of its one layer with alpha."""
    down, up = torch.randn(2, 24), torch.randn(24, 2)
    parts = zip(ends, (down, up, torch.tensor(ALPHA)), strict=False)
    save_file({f"diffusion_model.blocks.0.self_attn.q{end}": tensor for end, tensor in parts}, file, header)
    return ALPHA / 2 * up @ down


@pytest.mark.parametrize(
    ("ends", "header"),
    [
        ((*PEFT, ".alpha"), {}),
        ((*PEFT, ".alpha"), configured("transformer.", lora_alpha=7.0)),
        (PEFT, configured("transformer.", lora_alpha=ALPHA)),
        (PEFT, configured("", lora_alpha=7.0, alpha_pattern={"self_attn.q": ALPHA})),
    ],
)
def test_names_that_only_diffusers_converters_know(
    ends: tuple[str, ...], header: dict[str, str], tmp_path: Path
) -> None:
    """Alpha counts once, wherever it is said and whatever becomes of the names."""
    pipe, file = PIPELINES["wan"](), tmp_path / "lora.safetensors"
    product = of_wan(file, ends, header or None)
    (layer,) = loaded_into(pipe, pipe.transformer, read_lora(file)).items()
    assert layer[0] == "blocks.0.attn1.to_q"
    torch.testing.assert_close(layer[1].product(), product)


def test_a_conversion_that_loses_layers_is_none(tmp_path: Path) -> None:
    class Losing:
        @staticmethod
        def lora_state_dict(tensors: Tensors, **_: Any) -> tuple[Tensors, None]:
            return {f"transformer.{name.removeprefix('x.')}": t for name, t in tensors.items() if "to_q" in name}, None

    transformer, file = PIPELINES["wan"]().transformer, tmp_path / "lora.safetensors"
    layers = {f"x.blocks.0.attn1.{to}": Factors(down=torch.ones(2, 24), up=torch.ones(24, 2), alpha=2.0) for to in QK}
    save_file(named(dict(list(layers.items())[:1]), str, *PEFT), file)
    assert loaded_into(Losing(), transformer, read_lora(file)).keys() == {"blocks.0.attn1.to_q"}
    save_file(named(layers, str, *PEFT), file)
    with pytest.raises(InputError, match="of its 2 layers the WanTransformer3DModel takes 0"):
        loaded_into(Losing(), transformer, read_lora(file))
