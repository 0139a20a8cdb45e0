"""Single-file checkpoints give the same model as the folder they were made from."""

from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tests.image.ldm import single_file
from tests.tiny import sample, sd15
from tests.tiny import sdxl as tiny_sdxl
from transformers import CLIPTextConfig, CLIPTextModel

from selfnpo_core.errors import InputError
from selfnpo_image.demo.build import sdxl
from selfnpo_image.families import find_base
from selfnpo_image.kinds import FileLayout
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sd15 import SD15
from selfnpo_image.single_file import configs_for


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file(single_file(sd15()), path)
    return path


def test_the_same_pictures_as_the_folder(file: Path, folder: Path, offline: None) -> None:
    one = load_pipeline(find_base(str(file), folder))
    other = load_pipeline(find_base(str(folder)))
    for part in ("unet", "vae", "text_encoder"):
        a, b = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(sample("sd15", one), sample("sd15", other))


def test_an_ending_in_capitals(file: Path, folder: Path, offline: None, tmp_path: Path) -> None:
    (tmp_path / "tiny.SAFETENSORS").hardlink_to(file)
    one = load_pipeline(find_base(str(tmp_path / "tiny.SAFETENSORS"), folder))
    other = load_pipeline(find_base(str(file), folder))
    assert all(torch.equal(a, b) for a, b in zip(one.unet.parameters(), other.unet.parameters(), strict=True))
    assert one.config._name_or_path == str(tmp_path / "tiny.SAFETENSORS")


def test_the_same_pictures_of_sdxl(tmp_path: Path, offline: None) -> None:
    """Its second text encoder has OpenCLIP's layout, and is told from the first by its width."""
    pipe = sdxl.build(load_pipeline(find_base("demo")))
    pipe.save_pretrained(tmp_path / "folder")
    save_file(single_file(pipe), tmp_path / "tiny-xl.safetensors")
    one = load_pipeline(find_base(str(tmp_path / "tiny-xl.safetensors"), tmp_path / "folder"))
    other = load_pipeline(find_base(str(tmp_path / "folder")))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        a, b = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    torch.testing.assert_close(sample("sdxl", one), sample("sdxl", other), rtol=1e-4, atol=1e-4)


def test_the_same_base_as_the_folder(file: Path, folder: Path) -> None:
    one, other = SD15(find_base(str(file), folder), device="cpu"), SD15(find_base(str(folder)), device="cpu")
    assert one.base_hash == other.base_hash
    assert one.latent_shape == other.latent_shape


def test_another_size_needs_its_configurations(file: Path) -> None:
    with pytest.raises(InputError, match=r"text width 32.*--model-config"):
        load_pipeline(find_base(str(file)))


def test_configurations_of_another_family_are_refused(file: Path, tmp_path: Path) -> None:
    tiny_sdxl().save_pretrained(tmp_path / "xl")
    with pytest.raises(InputError, match=r"an SDXL folder, not of the SD1\.5 family"):
        find_base(str(file), tmp_path / "xl")


def test_a_tokenizer_is_asked_for_where_there_is_none(
    file: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLayout, "text_width", 32)
    with pytest.raises(InputError, match=r"has no tokenizer.*--model-config"):
        load_pipeline(find_base(str(file)))


def test_a_cut_file_is_named(file: Path, folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_pipeline(find_base(str(cut), folder))


def test_a_file_without_its_autoencoder_is_named(folder: Path, tmp_path: Path) -> None:
    weights = {name: t for name, t in single_file(sd15()).items() if not name.startswith("first_stage_model")}
    save_file(weights, tmp_path / "pruned.safetensors")
    with pytest.raises(InputError, match="pruned"):
        load_pipeline(find_base(str(tmp_path / "pruned.safetensors"), folder))


def test_the_known_configurations_are_those_of_sd15() -> None:
    """Parameters as published: UNet 859.5 M, autoencoder 83.7 M, text encoder 123.1 M."""
    configs = configs_for(SD15.kind.layout, {})
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(configs["unet/config.json"])
        vae = AutoencoderKL.from_config(configs["vae/config.json"])
        text = CLIPTextModel(CLIPTextConfig(**configs["text_encoder/config.json"]))
    sizes = [sum(p.numel() for p in module.parameters()) for module in (unet, vae, text)]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]


def test_marks_of_v_prediction() -> None:
    configs = configs_for(SD15.kind.layout, {"v_pred": (0,), "ztsnr": (0,)})
    scheduler = configs["scheduler/scheduler_config.json"]
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert configs["model_index.json"]["scheduler"] == ["diffusers", scheduler["_class_name"]]
    assert configs_for(SD15.kind.layout, {})["scheduler/scheduler_config.json"]["prediction_type"] == "epsilon"
