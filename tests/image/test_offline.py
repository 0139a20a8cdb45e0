"""With HF_HUB_OFFLINE=1: what is in the hub's cache works for every option that takes a model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from tests.hub import COMMIT, go_offline, put
from tests.image.ldm import single_file

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.weights import Wanted, locate
from selfnpo_core.models.hub import files_of
from selfnpo_core.models.loading import one_line_errors
from selfnpo_core.models.sources import Source
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline, local
from selfnpo_image.sampling import find_preference
from selfnpo_video.families import find_base as find_video
from selfnpo_video.loading import local as local_video


@pytest.fixture
def cache(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """someone/tiny in it, whole."""
    go_offline(monkeypatch, tmp_path / "hub")
    put(tmp_path / "hub", "someone/tiny", folder)
    return tmp_path / "hub"


def test_a_model(cache: Path) -> None:
    base = find_base("someone/tiny")
    assert local(base).source.kind == "folder"
    assert load_pipeline(base).unet is not None
    with pytest.raises(InputError, match="hf download someone/other"):
        find_base("someone/other")


def test_preferences(cache: Path, folder: Path, tmp_path: Path) -> None:
    """A whole model, a denoiser alone, a LoRA alone."""
    base = find_base(str(folder))
    put(cache, "someone/unet", folder / "unet")
    save_file({"unet.x.lora_A.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    lora = put(cache, "someone/lora", {"style.safetensors": tmp_path / "lora.safetensors"})
    for name in ("someone/tiny", "someone/unet"):
        found = find_preference(name, base)
        assert found.whole is not None
        assert found.whole().denoiser.config.in_channels == 4
    assert find_preference("someone/lora", base).lora == lora / "style.safetensors"
    with pytest.raises(InputError, match="cannot get model someone/none from the hub"):
        find_preference("someone/none", base)


def test_what_is_missing_of_a_model_is_named(cache: Path, folder: Path) -> None:
    """Of a whole model, a preference, and one whose newest snapshot is not known."""
    here = cache / "models--someone--tiny"
    (here / "snapshots" / COMMIT / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"not all of model someone/tiny .* lacks vae/\*\.safetensors: with a network"):
        load_pipeline(find_base("someone/tiny"))
    unet = put(cache, "someone/unet", folder / "unet")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"not all of model someone/unet .* lacks \*\.safetensors"):
        find_preference("someone/unet", find_base(str(folder)))
    (here / "refs/main").unlink()
    with pytest.raises(InputError, match=f"refs/main, .*snapshots/{COMMIT} in its place"):
        find_base("someone/tiny")


def test_configurations_of_a_single_file(cache: Path, folder: Path, tmp_path: Path) -> None:
    save_file(single_file(load_pipeline(find_base(str(folder)))), tmp_path / "one.safetensors")
    name = str(tmp_path / "one.safetensors")
    base = find_base(name, "someone/tiny")
    assert base.network == json.loads((folder / "unet" / "config.json").read_text())
    assert load_pipeline(base).text_encoder is not None
    with pytest.raises(InputError, match="cannot get model someone/none"):
        find_base(name, "someone/none")
    with pytest.raises(InputError, match=r"no model_index\.json"):
        find_base(name, str(tmp_path))


def test_judges(cache: Path) -> None:
    wanted = Wanted(repo="someone/tiny", files=("model_index.json", "unet/config.json|other"))
    assert locate([wanted], None, "clip_score") == [cache / "models--someone--tiny" / "snapshots" / COMMIT]


def test_clips(cache: Path, tmp_path: Path) -> None:
    """Of a video model the same."""
    from tests.tiny import cogvideox

    cogvideox().save_pretrained(tmp_path / "video")
    put(cache, "someone/video", tmp_path / "video")
    base = find_video("someone/video")
    assert base.family == "cogvideox"
    assert local_video(base).source.kind == "folder"
    snapshot = cache / "models--someone--video" / "snapshots" / COMMIT
    (snapshot / "text_encoder/model.safetensors").unlink()
    with pytest.raises(InputError, match=r"not all of model someone/video .* lacks text_encoder/\*\.safetensors"):
        local_video(base)
    (snapshot / "vae/config.json").unlink()
    with pytest.raises(InputError, match=r"not all of model someone/video .* lacks vae/config\.json"):
        find_video("someone/video")


def refusal(status: int) -> Exception:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return errors.RepositoryNotFoundError("no", response=response)


@pytest.mark.parametrize(
    ("status", "token", "words"),
    [
        (401, "hf_old", r"refuses your token \(401, asked for someone/x\)"),
        (401, None, "the hub has no model someone/x"),
        (404, "hf_good", "the hub has no model someone/x"),
    ],
)
def test_an_expired_token_is_called_that(
    status: int, token: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    source = Source(name="someone/x", kind="hub", location="someone/x")
    with pytest.raises(InputError, match=words), one_line_errors(source):
        raise refusal(status)


def test_a_token_that_is_refused_behind_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_old")
    behind = OSError("not in the cache")
    behind.__cause__ = refusal(401)
    source = Source(name="someone/x", kind="hub", location="someone/x")
    with pytest.raises(InputError, match="refuses your token"), one_line_errors(source):
        raise behind


def test_a_refused_token_does_not_hide_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repo: str, **_: object) -> list[str]:
        raise refusal(401)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", refuse)
    assert "model_index.json" in files_of("someone/tiny")
    with pytest.raises(errors.RepositoryNotFoundError):
        files_of("someone/none")
