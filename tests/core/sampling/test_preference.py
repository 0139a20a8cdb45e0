"""A pipeline at θ + η, and η itself where it is asked for."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from tests.core.training.toy import ToyNet
from torch import nn

from selfnpo_core.errors import InputError
from selfnpo_core.models.sources import Source
from selfnpo_core.sampling import preference
from selfnpo_core.sampling.options import Negative
from selfnpo_core.sampling.preference import Preference, Whole, prediction_beside, with_preference


@dataclass
class Job:
    preference: str | None = "tuned"
    negative: Negative | None = None


def negative(alpha: float) -> Negative:
    return Negative(path=Path("npo.safetensors"), beta=1.0, alpha=alpha, condition="null", other_base=True)


def tuned() -> nn.Module:
    network = ToyNet()
    with torch.no_grad():
        network.to_q.weight += 0.5
    return network


def find(name: str) -> Preference:
    return Preference(name=name, whole=lambda: Whole(denoiser=tuned()))


@pytest.fixture
def pipe():
    return SimpleNamespace(denoiser=ToyNet(), name_or_path="toy/base")


def assert_tuned(network: nn.Module) -> None:
    assert all(torch.equal(own, other) for own, other in zip(network.parameters(), tuned().parameters(), strict=True))


@pytest.mark.parametrize("job", [Job(), Job(negative=negative(1.0))])
def test_eta_is_not_kept_where_nobody_asks_for_it(pipe, job):
    prepared = with_preference(pipe, "denoiser", job, find)
    assert prepared.pipe is pipe
    assert prepared.eta is None
    assert_tuned(pipe.denoiser)


def test_eta_is_what_the_weights_were_moved_by(pipe):
    prepared = with_preference(pipe, "denoiser", Job(negative=negative(0.5)), find)
    assert_tuned(pipe.denoiser)
    assert prepared.eta.keys() == {"to_q.weight"}
    torch.testing.assert_close(prepared.eta["to_q.weight"], torch.full((48, 81), 0.5))
    assert set(vars(pipe)) == {"denoiser", "name_or_path"}


def test_without_a_preference_nothing_is_changed(pipe):
    prepared = with_preference(pipe, "denoiser", Job(preference=None, negative=negative(0.5)), find)
    assert (prepared.pipe, prepared.eta) == (pipe, None)
    own = zip(pipe.denoiser.parameters(), ToyNet().parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in own)


def test_weights_of_another_architecture_are_refused(pipe):
    other = Preference(name="other", whole=lambda: Whole(denoiser=nn.Linear(2, 2)))
    with pytest.raises(InputError, match="tuned"):
        with_preference(pipe, "denoiser", Job(), lambda name: other)


def test_another_prediction_type_is_refused(pipe, monkeypatch):
    monkeypatch.setattr(preference, "prediction_of", lambda scheduler: scheduler)
    pipe.scheduler = "epsilon"
    for told, fits in (("epsilon", True), (None, True), ("v_prediction", False), ("flow", False)):
        whole = Whole(denoiser=tuned(), prediction_type=told)
        found = Preference(name="x", whole=lambda whole=whole: whole)
        if fits:
            found.apply(pipe, "denoiser", keep=False)
            continue
        with pytest.raises(InputError, match=f"predicts '{told}', and the model predicts 'epsilon'"):
            found.apply(pipe, "denoiser", keep=False)


@pytest.mark.parametrize(
    ("config", "predicts"),
    [
        ({"prediction_type": "v_prediction"}, "v_prediction"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow"),
        ({}, "epsilon"),
        (None, None),
    ],
)
def test_what_a_folder_says_of_its_prediction(config, predicts, tmp_path):
    if config is not None:
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert prediction_beside(tmp_path) == predicts


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_text_encoder_that_was_tuned_too_is_named(place, pipe, tmp_path, caplog):
    """Not one that was only cast."""
    pipe.text_encoder, pipe.text_encoder_2 = nn.Linear(8, 8), nn.Linear(8, 8)
    other = copy.deepcopy(pipe.text_encoder_2)
    with torch.no_grad():
        other.weight += 0.1
    encoders = {"text_encoder": copy.deepcopy(pipe.text_encoder).half(), "text_encoder_2": other}
    if place == "disk":
        for part, encoder in encoders.items():
            (tmp_path / part).mkdir()
            save_file(encoder.state_dict(), tmp_path / part / "model.safetensors")
        encoders = {part: tmp_path / part for part in encoders}
    Preference(name="x", whole=lambda: Whole(denoiser=tuned(), encoders=encoders)).apply(pipe, "denoiser", keep=False)
    assert "preference x: only its denoiser is taken, and its text_encoder_2, tuned too, is left out" in caplog.text


class Texts(nn.Module):
    """A text encoder of two layers, by the names that are given it."""

    def __init__(self, prefix: str = ""):
        super().__init__()
        self.names = {f"{prefix}block.0.weight": 0, f"{prefix}block.1.weight": 1}
        self.layers = [torch.full((4, 4), 1.0), torch.full((4, 4), 2.0)]

    def state_dict(self, *_args, **_kwargs):
        return {name: self.layers[k] for name, k in self.names.items()}


@pytest.mark.parametrize(
    ("own", "prefix"),
    [("", ""), ("", "encoder."), ("", "model.text."), ("encoder.", ""), ("encoder.", "model.encoder.")],
)
@pytest.mark.parametrize("by", [0.0, 0.5])
def test_a_text_encoder_on_disk_may_have_other_prefixes(own, prefix, by, pipe, tmp_path, caplog):
    pipe.text_encoder, other = Texts(own), Texts(prefix)
    other.layers = [layer + by for layer in other.layers]
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    whole = Whole(denoiser=tuned(), encoders={"text_encoder": tmp_path})
    Preference(name="x", whole=lambda: whole).apply(pipe, "denoiser", keep=False)
    assert ("its text_encoder, tuned too, is left out" in caplog.text) == (by > 0)
    assert "do not tell" not in caplog.text


def test_a_text_encoder_whose_names_tell_nothing_is_named_as_that(pipe, tmp_path, caplog):
    pipe.text_encoder = Texts()
    save_file({"layers.0.q": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    whole = Whole(denoiser=tuned(), encoders={"text_encoder": tmp_path})
    Preference(name="x", whole=lambda: whole).apply(pipe, "denoiser", keep=False)
    assert "preference x: only its denoiser is taken; whether its text_encoder, which is left out," in caplog.text


def network_folder(
    folder: Path, metadata: dict[str, str] | None = None, suffix: str = "", **more: torch.Tensor
) -> Path:
    """A UNet alone."""
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks).save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), **more}, file, metadata)
    file.rename(file.with_suffix(f"{suffix}.safetensors"))
    return folder


def found_in(folder: Path) -> Whole:
    def locate(place: str) -> Source:
        return Source(name=place, kind="folder", location=place)

    found = preference.find(str(folder), network=UNet2DModel, component="unet", locate=locate, whole=lambda _: None)
    assert found.whole is not None
    return found.whole()


def test_a_denoiser_alone_says_how_it_predicts(tmp_path):
    assert found_in(network_folder(tmp_path / "a/unet")).prediction_type is None
    marked = network_folder(tmp_path / "b/unet", v_pred=torch.zeros(0))
    assert found_in(marked).prediction_type == "v_prediction"
    told = network_folder(tmp_path / "c/unet", {"modelspec.prediction_type": "v"}, suffix=".fp16")
    assert found_in(told).prediction_type == "v_prediction"
    (told.parent / "scheduler").mkdir()
    config = told.parent / "scheduler/scheduler_config.json"
    config.write_text('{"prediction_type": "v_prediction"}')
    assert found_in(told).prediction_type == "v_prediction"
    config.write_text("{}")
    with pytest.raises(InputError, match="says of itself v_prediction, and the scheduler beside it epsilon: correct"):
        found_in(told)


@pytest.mark.parametrize(
    ("metadata", "tensors", "words"),
    [
        ({}, {"conv_in.weight_scale": torch.ones(1)}, "holds quantised weights"),
        ({"quantization_config": "x"}, {}, "holds quantised weights"),
        ({}, {"edm_mean": torch.ones(1)}, "parametrised as EDM"),
    ],
)
def test_a_denoiser_alone_that_is_no_plain_one_is_refused(metadata, tensors, words, tmp_path):
    folder = network_folder(tmp_path / "unet", metadata, **tensors)
    with pytest.raises(InputError, match=words) as error:
        found_in(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_denoiser_alone_whose_configuration_is_of_quantised_weights_is_refused(tmp_path):
    folder = network_folder(tmp_path / "unet")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json is of quantised weights \(bitsandbytes\)"):
        found_in(folder)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lora_unet_x.lora_down.weight", "lora"),
        ("unet.x.processor.to_q_lora.down.weight", "lora"),
        ("x.lora_A.weight", "lora"),
        ("lora_unet_x.hada_w1_a", "lora"),
        ("model.diffusion_model.x", "a denoiser alone"),
        ("emb_params", "a textual inversion"),
        ("control_model.x", "a ControlNet"),
    ],
)
def test_what_a_file_is(name, what, tmp_path):
    file = tmp_path / "file.safetensors"
    save_file({name: torch.ones(2)}, file)

    def found():
        def locate(place):
            return Source(name=place, kind="file", location=place)

        return preference.find(str(file), network=nn.Linear, component="unet", locate=locate, whole=lambda _: None)

    if what == "lora":
        assert found().lora == file
        return
    with pytest.raises(InputError, match=what):
        found()


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["README.md", "adapter_config.json", "adapter_model.safetensors"], "both"),
        (["adapter_model.safetensors"], "weights"),
        (["adapter_config.json", "style.safetensors"], "weights"),
    ],
)
def test_of_pefts_repository_the_configuration_is_fetched_too(files, wanted, tmp_path, monkeypatch):
    """It says alpha, and is read beside the weights."""
    fetched = []

    def download(repo, name, **_):
        fetched.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(preference, "files_of", lambda *_: files)
    source = Source(name="someone/lora", kind="hub", location="someone/lora")
    found = preference.find(
        "someone/lora", network=nn.Linear, component="unet", locate=lambda _: source, whole=lambda _: None
    )
    weights = next(name for name in files if name.endswith(".safetensors"))
    assert found.lora == tmp_path / weights
    assert set(fetched) == ({weights, "adapter_config.json"} if wanted == "both" else {weights})
