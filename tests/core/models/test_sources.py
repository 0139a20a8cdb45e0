"""What `--model NAME` stands for."""

from pathlib import Path

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.models.sources import KnownModel, Source, find_source


def line(name: str, hub_id: str | None) -> KnownModel:
    return KnownModel(
        name=name,
        family="toy",
        hub_id=hub_id,
        about="a toy",
        licence="MIT",
        parameters=1,
        prediction_type="epsilon",
        dtype="fp32",
    )


KNOWN = {"demo": line("demo", None), "big": line("big", "owner/big-model")}


def find(name: str, **given) -> Source:
    return find_source(name, KNOWN, lambda: Path("/shipped"), **given)


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    (tmp_path / "owner/folder").mkdir(parents=True)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "model.ckpt").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/model_index.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_known_names_come_first(files):
    (files / "demo").mkdir()
    assert find("demo") == Source(name="demo", kind="folder", location="/shipped")
    assert find("big") == Source(name="big", kind="hub", location="owner/big-model")


def test_what_exists_comes_before_the_hub(files):
    assert find("owner/folder") == Source(name="owner/folder", kind="folder", location="owner/folder")
    assert find("owner/other") == Source(name="owner/other", kind="hub", location="owner/other")


def test_a_file(files):
    assert find("model.safetensors") == Source(
        name="model.safetensors", kind="file", location="model.safetensors", config=None
    )


def test_a_files_ending_in_capitals(files):
    (files / "model.SAFETENSORS").touch()
    assert find("model.SAFETENSORS") == Source(name="model.SAFETENSORS", kind="file", location="model.SAFETENSORS")


def test_a_home_folder_is_found(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    assert find("~/config").location == str(files / "config")


def test_a_file_with_its_configurations(files):
    assert find("model.safetensors", config="config").config == Path("config")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.ckpt", "is a pickle"),
        ("notes.txt", "neither a folder nor a .safetensors file"),
        ("missing.safetensors", "does not exist"),
        ("missing.SafeTensors", "does not exist"),
        ("missing.ckpt", "does not exist"),
        ("./owner/missing", "does not exist"),
        ("a/b/c", "does not exist"),
        ("bgi", "did you mean big?"),
        ("something", "known are demo, big"),
        ("nobody/", "unknown model 'nobody/'"),
    ],
)
def test_what_is_no_model_is_named(files, name, words):
    with pytest.raises(InputError) as error:
        find(name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("big", "config", "is for a single .safetensors file"),
        ("model.safetensors", "owner", "not a diffusers folder"),
    ],
)
def test_configurations_that_fit_nothing_are_refused(files, name, config, words):
    with pytest.raises(InputError, match=words):
        find(name, config=config)


@pytest.mark.parametrize(
    ("name", "words"),
    [("m.gguf", r"quantised weights \(GGUF\)"), ("m.CKPT", "is a pickle")],
)
def test_files_by_their_suffix(files, name, words):
    (files / name).touch()
    with pytest.raises(InputError, match=words):
        find(name)
