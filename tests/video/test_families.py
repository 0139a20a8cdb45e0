"""A model is found and looked at once: folders, the hub with and without the table, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from tests.tiny import cogvideox

from selfnpo_core.errors import InputError
from selfnpo_video import loading
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.families import backbone_of, find_base
from selfnpo_video.loading import local
from selfnpo_video.models import KNOWN
from selfnpo_video.shapes import ClipSize


def no_fetching(*args: object, **options: object) -> None:
    pytest.fail("fetched")


def test_a_folder_tells_what_it_is(folder: Path) -> None:
    base = find_base(str(folder))
    assert (base.name, base.family, base.known, base.from_image) == (str(folder), "cogvideox", None, False)
    assert backbone_of(base) is CogVideoX
    assert base.size == ClipSize(frames=9, height=64, width=64)
    assert base.size_of(17, None, 32) == ClipSize(frames=17, height=64, width=32)
    assert base.compression.patch_time == (base.transformer.patch_size_t or 1)
    assert base.transformer.num_layers == 2
    assert base.transformer.dropout == 0.0  # left out on disk or not, as the class has it
    assert base.scheduler["prediction_type"] == "v_prediction"
    assert local(base) is base


def test_the_demos_model_is_shipped() -> None:
    base = find_base("demo")
    assert base.shipped
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
        if model.from_image:
            with pytest.raises(InputError, match="training wants text to video"):
                CogVideoX.sketch(base)


def test_of_another_model_on_the_hub_the_configurations_are_fetched(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its weights when it is wanted on this disk."""
    asked = []

    def fetch(location: str, allow_patterns: list[str]) -> str:
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


@pytest.fixture
def damaged(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "model"))


def test_what_is_no_model_of_ours_is_refused(damaged: Path) -> None:
    index = damaged / "model_index.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps({**values, "_class_name": "WanPipeline"}))
    with pytest.raises(InputError, match="is a WanPipeline, not CogVideoX: give one that is, such as cogvideox-2b"):
        find_base(str(damaged))
    index.write_text("{")
    with pytest.raises(InputError, match=r"model_index.json is damaged \(.*\): get the model again"):
        find_base(str(damaged))
    index.unlink()
    with pytest.raises(InputError, match=r"has no model_index.json: give a diffusers folder of CogVideoX"):
        find_base(str(damaged))


def test_a_single_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="is a single file: CogVideoX comes in diffusers folders, give one"):
        find_base(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_that_are_missing_or_pickled_are_refused(damaged: Path, part: str) -> None:
    (weights,) = (damaged / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=f"only pickled weights, which can run code when loaded in {part}"):
        find_base(str(damaged))
    weights.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match=f"has no weights in {part}: get it as safetensors"):
        find_base(str(damaged))


def test_a_configuration_that_is_missing_is_named(damaged: Path) -> None:
    (damaged / "vae" / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no readable vae/config.json \(.*\): get it again"):
        find_base(str(damaged))


def test_a_foreign_scheduler_is_refused(damaged: Path) -> None:
    file = damaged / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "DDIMScheduler"}))
    with pytest.raises(InputError, match="has a DDIMScheduler: CogVideoX wants its own DDIM or DPM scheduler"):
        CogVideoX(find_base(str(damaged)), device="cpu")
    index = damaged / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(InputError, match=r"has a DDIMScheduler: CogVideoX wants its own DDIM or DPM$"):
        loading.load_pipeline(find_base(str(damaged)))


def test_from_image_is_told(tmp_path: Path) -> None:
    cogvideox("5b-i2v").save_pretrained(tmp_path)
    base = find_base(str(tmp_path))
    assert base.from_image
    assert base.pipeline.__name__ == "CogVideoXImageToVideoPipeline"
    assert base.compression.fixed == base.size
