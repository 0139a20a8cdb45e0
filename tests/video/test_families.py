"""A model is found and looked at once: the shipped one, and on the hub with and without the table."""

from pathlib import Path

import pytest

from selfnpo_core.errors import InputError
from selfnpo_video import loading
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.families import backbone_of, find_base
from selfnpo_video.loading import local
from selfnpo_video.models import KNOWN


def no_fetching(*args: object, **options: object) -> None:
    pytest.fail("fetched")


def test_the_demos_model_is_shipped() -> None:
    base = find_base("demo")
    assert base.shipped
    assert backbone_of(base) is CogVideoX
    assert base.size == KNOWN["demo"].size
    assert base.folder.is_dir()


@pytest.mark.parametrize("model", [model for model in KNOWN.values() if model.hub_id], ids=lambda model: model.name)
def test_a_known_model_is_told_by_the_table(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "snapshot_download", no_fetching)
    for name in (model.name, model.hub_id):
        base = find_base(name)
        assert (base.name, base.known, base.from_image) == (name, model, model.from_image)
        assert base.size == model.size
        assert not base.shipped
        assert base.compression.latent_shape(base.size)
        assert backbone_of(base).kind is base.kind
        if model.from_image:
            with pytest.raises(InputError, match="training wants text to video"):
                CogVideoX.sketch(base)


def test_of_another_model_on_the_hub_the_configurations_are_fetched(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its weights when it is wanted on this disk."""
    asked = []

    def fetch(location: str, allow_patterns: list[str], revision: str | None) -> str:
        asked.append((location, any("safetensors" in pattern for pattern in allow_patterns)))
        return str(small)

    monkeypatch.setattr(loading, "snapshot_download", fetch)
    base = find_base("someone/some-model")
    assert asked == [("someone/some-model", False)]
    assert (base.source.kind, base.known) == ("hub", None)
    assert CogVideoX.sketch(base).latent_shape == CogVideoX.sketch(find_base(str(small))).latent_shape
    assert len(asked) == 1
    here = local(base)
    assert asked[1:] == [("someone/some-model", True)]
    assert (here.name, here.folder) == ("someone/some-model", small)


def test_a_single_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="is a single file: CogVideoX or Wan comes in diffusers folders, give one"):
        find_base(str(tmp_path / "model.safetensors"))
