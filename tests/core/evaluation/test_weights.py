"""Judges' weights: found in a folder of the user's or asked of the hub, named where they are missing, read safely."""

import hashlib
import io
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.weights import Wanted, library, locate, pick, read_weights, weights_sha256

TWO = Wanted(repo="owner/name", files=("config.json", "model.bin|model.safetensors"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the hub was asked for what is in its cache only; it has nothing."""
    calls = []

    def nothing(repo, *, allow_patterns, local_files_only):
        assert allow_patterns == ["config.json", "model.bin", "model.safetensors"]
        calls.append(local_files_only)
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    return calls


def folder(root: Path, *names: str) -> Path:
    place = root / "owner" / "name"
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        (place / name).write_bytes(name.encode())
    return place


def test_a_folder_of_the_users_comes_before_the_hub(tmp_path: Path, asked: list[bool]) -> None:
    place = folder(tmp_path, "config.json", "model.bin")
    assert locate([TWO], tmp_path, "score") == [place]
    assert asked == []
    assert pick(place, TWO.files[1]) == place / "model.bin"
    folder(tmp_path, "model.safetensors")
    assert pick(place, TWO.files[1]) == place / "model.safetensors"
    found = weights_sha256([TWO], [place])
    assert found == {"owner/name/model.safetensors": hashlib.sha256(b"model.safetensors").hexdigest()}


def test_what_is_missing_is_named_with_how_to_get_it(tmp_path: Path, asked: list[bool]) -> None:
    folder(tmp_path, "config.json")
    own = Wanted(repo="their/site", files=("w.pth",), hub=False, elsewhere="https://their.site/w.pth into WEIGHTS")
    with pytest.raises(InputError) as error:
        locate([TWO, own], tmp_path, "score")
    told = str(error.value)
    assert "score wants config.json, model.bin or model.safetensors of owner/name; w.pth of their/site" in told
    assert "hf download owner/name config.json model.bin --local-dir WEIGHTS/owner/name" in told
    assert "put https://their.site/w.pth into WEIGHTS" in told
    assert asked == [True, False]  # the cache first


def test_the_hub_fills_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path / "cache", "config.json", "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: str(place))
    assert locate([TWO], None, "score") == [place]
    (place / "config.json").unlink()  # the cache has a part only
    with pytest.raises(InputError, match="wants"):
        locate([TWO], None, "score")


def test_a_pickle_is_read_as_plain_tensors_or_not_at_all(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    torch.save({"state_dict": {"state_dict": tensors}, "epoch": 1}, tmp_path / "w.pth")
    save_file(tensors, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)["a"], tensors["a"])
    torch.save({"a": "text"}, tmp_path / "text.pth")
    with pytest.raises(InputError, match="something else than tensors"):
        read_weights(tmp_path / "text.pth")
    torch.save(io.BytesIO(b"code could be here"), tmp_path / "code.pth")
    with pytest.raises(InputError, match="cannot be read as plain tensors"):
        read_weights(tmp_path / "code.pth")


def test_a_librarys_version() -> None:
    assert library("torch") == f"torch {torch.__version__}"
    assert library("no-such-library") == "no-such-library (not installed)"
