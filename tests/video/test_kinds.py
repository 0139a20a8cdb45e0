"""What the configurations of a folder tell, and what is refused."""

import json
from pathlib import Path

import pytest
from tests.tiny import cogvideox

from selfnpo_core.errors import InputError
from selfnpo_video.families import find_base
from selfnpo_video.loading import local
from selfnpo_video.shapes import ClipSize


def test_a_folder_tells_what_it_is(folder: Path) -> None:
    base = find_base(str(folder))
    assert (base.name, base.family, base.known, base.from_image) == (str(folder), "cogvideox", None, False)
    assert base.size == ClipSize(frames=9, height=64, width=64)
    assert base.size_of(17, None, 32) == ClipSize(frames=17, height=64, width=32)
    assert base.compression.patch_time == (base.transformer.patch_size_t or 1)
    assert base.transformer.num_layers == 2
    assert base.transformer.dropout == 0.0  # left out on disk or not, as the class has it
    assert base.scheduler["prediction_type"] == "v_prediction"
    assert local(base) is base


def test_from_image_is_told(tmp_path: Path) -> None:
    cogvideox("5b-i2v").save_pretrained(tmp_path)
    base = find_base(str(tmp_path))
    assert base.from_image
    assert base.pipeline.__name__ == "CogVideoXImageToVideoPipeline"
    assert base.compression.fixed == base.size


def test_what_is_no_model_of_ours_is_refused(damaged: Path) -> None:
    index = damaged / "model_index.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps({**values, "_class_name": "LTXPipeline"}))
    with pytest.raises(InputError, match=r"is a LTXPipeline, not CogVideoX or Wan: give one .*-2b or wan2\.1-1\.3b"):
        find_base(str(damaged))
    index.write_text("{")
    with pytest.raises(InputError, match=r"model_index.json is damaged \(.*\): get the model again"):
        find_base(str(damaged))
    index.unlink()
    with pytest.raises(InputError, match=r"has no model_index.json: give a diffusers folder of CogVideoX or Wan"):
        find_base(str(damaged))


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
