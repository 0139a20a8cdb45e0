"""torch-fidelity's InceptionV3: only its own file, read safely, and without what its package imports."""

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation import fidelity


def test_a_missing_package_is_said_with_its_extra(monkeypatch):
    monkeypatch.setattr(fidelity, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'selfnpo-core\[eval\]'"):
        fidelity.require()


def test_another_file_of_that_name_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / f"{fidelity.STEM}.pth")
    with pytest.raises(InputError, match=r"is not torch-fidelity's file \(its sha256 begins with 6726825d\)"):
        fidelity.inception(tmp_path, torch.device("cpu"))


def test_weights_reach_the_network_as_plain_tensors(tmp_path, monkeypatch):
    save_file({"a": torch.arange(2.0)}, tmp_path / f"{fidelity.STEM}.safetensors")
    given = {}

    class Extractor(torch.nn.Linear):
        def __init__(self, name, layers, feature_extractor_weights_path):
            super().__init__(1, 1)
            given.update(torch.load(feature_extractor_weights_path, weights_only=True), layers=layers)

    module = SimpleNamespace(FeatureExtractorInceptionV3=Extractor)
    monkeypatch.setattr(fidelity, "_module", lambda name: module)
    assert isinstance(fidelity.inception(tmp_path, torch.device("cpu")), Extractor)
    assert torch.equal(given["a"], torch.arange(2.0))
    assert given["layers"] == ["2048"]

    def unfit(*args, **options):
        raise RuntimeError("size mismatch\nfor conv")

    module.FeatureExtractorInceptionV3 = unfit
    with pytest.raises(InputError, match=r"does not fit torch-fidelity's InceptionV3 \(size mismatch for conv\)"):
        fidelity.inception(tmp_path, torch.device("cpu"))


def test_a_module_comes_without_its_packages_init(tmp_path, monkeypatch):
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "__init__.py").write_text("raise ImportError('as torchvision might')")
    (tmp_path / "heavy" / "part.py").write_text("from heavy import other\nvalue = other.value")
    (tmp_path / "heavy" / "other.py").write_text("value = 7")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fidelity, "PACKAGE", "heavy")
    assert fidelity._module("part").value == 7
    assert not [name for name in sys.modules if name.partition(".")[0] == "heavy"]
