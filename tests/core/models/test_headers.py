"""One function reads what safetensors files say of themselves."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from selfnpo_core.errors import InputError
from selfnpo_core.models.headers import read_header

PACKAGES = Path(__file__).parents[3] / "packages"
OWN_FORMATS = {"headers.py", "embeddings.py", "sample_store.py", "kept_latents.py"}
"""The function's own file, and three of files that this project alone writes and reads, with their rows at once."""


def test_names_shapes_dtypes_and_what_is_beside(tmp_path):
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int8)}, tmp_path / "x.safetensors", {"c": "d"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.shapes == {"a": (2, 3), "b": (4,)}
    assert header.dtypes == {"a": "F32", "b": "I8"}
    assert header.metadata == {"c": "d"}
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-1])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read_header(tmp_path / "y.safetensors")


def test_there_is_one_reader_of_headers():
    """Of their metadata, which only `safe_open` gives."""
    sources = list(PACKAGES.rglob("src/**/*.py"))
    assert {path.name for path in sources if ".metadata()" in path.read_text(encoding="utf-8")} == OWN_FORMATS
