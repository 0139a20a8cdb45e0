"""A model's folder whose JSON has byte-order marks is taken as if it had none, and stays as it is."""

import json

import pytest

from selfnpo_core.models.marks import without_marks
from selfnpo_core.models.sources import find_source


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_with_a_mark_is_as_without(tmp_path, encoding):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"a": "ü"}', encoding=encoding)
    (folder / "unet" / "config.json").write_text('{"b": 1}', encoding="utf-8")
    (folder / "unet" / "x.safetensors").write_bytes(b"weights")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    plain = without_marks(folder)
    assert (plain.name, plain != folder) == ("model", True)
    assert json.loads((plain / "model_index.json").read_text("utf-8")) == {"a": "ü"}
    assert json.loads((plain / "unet" / "config.json").read_text("utf-8")) == {"b": 1}
    assert (plain / "unet" / "x.safetensors").read_bytes() == b"weights"
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    source = find_source(str(folder), {}, lambda: tmp_path)
    assert (source.name, source.kind, source.location != str(folder)) == (str(folder), "folder", True)


def test_a_folder_without_marks_is_itself(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "cut.json").write_text("")
    assert without_marks(tmp_path) == tmp_path
