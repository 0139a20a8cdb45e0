"""Files that ship with a demo model: written, read back, and refused where the model is bad."""

import json
from types import SimpleNamespace

import pytest
import torch
from tests.core.experiments.dots import Dots, Eyes, Taste
from torch import nn

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.evaluation import Moments
from selfnpo_core.worlds.assets import (
    load_judges,
    model_folder,
    real_batch,
    reconstruction_distance,
    reference,
    refuse_ragged,
    write_assets,
)
from selfnpo_core.worlds.world import Judges

WORLD = Dots()


def test_a_ragged_model_is_refused():
    refuse_ragged(0.85, 3.0, least=0.8, most=8.0)
    with pytest.raises(RunError, match=r"joint prompt accuracy 0\.790"):
        refuse_ragged(0.79, 3.0, least=0.8, most=8.0)
    with pytest.raises(RunError, match="reconstruction distance"):
        refuse_ragged(0.85, 8.1, least=0.8, most=8.0)


class Pipe:
    """Saves the dtype that it was asked to have."""

    dtype = torch.float32

    def to(self, dtype):
        self.dtype = dtype
        return self

    def save_pretrained(self, folder, **_options):
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"dtype": str(self.dtype)}))


def judges(seed):
    torch.manual_seed(seed)
    moments = Moments(mean=torch.randn(2).double(), covariance=torch.eye(2).double(), count=1234)
    return Judges(oracle=nn.Linear(3, 2), preference=nn.BatchNorm1d(2), reference=moments)


def test_judges_come_back_as_they_were_but_for_half_the_bits(tmp_path):
    made, pipe = judges(0), Pipe()
    made.preference.num_batches_tracked.fill_(70_001)
    card = "{rows}\n-{history}\n"
    for _ in range(2):  # the second time over the first
        write_assets(tmp_path / "new", pipe, made, {"updates": 5, "table": {"a": 1}}, card, "trained twice " * 12)
    assert pipe.dtype == torch.float32
    assert json.loads((model_folder(tmp_path / "new") / "model_index.json").read_text()) == {"dtype": "torch.float16"}
    other = judges(1)
    read = load_judges(tmp_path / "new", other.oracle, other.preference)
    assert torch.equal(read.oracle.weight, made.oracle.weight.half().float())
    assert read.preference.num_batches_tracked == 70_001
    assert not any(p.requires_grad for p in read.oracle.parameters())
    assert torch.allclose(read.reference.mean, made.reference.mean.float().double())
    assert read.reference.count == 1234
    told = (tmp_path / "new" / "model" / "README.md").read_text()
    assert told.startswith("| updates | 5 |\n-\n  trained twice")
    assert max(map(len, told.splitlines())) <= 118
    assert json.loads((tmp_path / "new" / "card.json").read_text()) == {"schema": 1, "updates": 5, "table": {"a": 1}}
    assert {p.name for p in (tmp_path / "new").iterdir()} == {
        "model",
        "oracle.safetensors",
        "judge.safetensors",
        "reference.safetensors",
        "card.json",
    }


def test_a_model_that_is_missing(tmp_path):
    with pytest.raises(InputError, match="missing from this installation"):
        model_folder(tmp_path)


def test_real_samples_are_whole_bytes():
    data, labels = real_batch(WORLD, 4, torch.Generator().manual_seed(0))
    assert data.shape == (4, 3, 8, 8)
    assert labels.shape == (4, 1)
    assert torch.equal((data * 255).round() / 255, data)


def test_what_an_autoencoder_loses_is_the_distance_to_real_data():
    class Darker(nn.Module):
        def __init__(self, keeps):
            super().__init__()
            self.keeps = keeps

        def encode(self, x):
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=x + 1))

        def decode(self, z):
            return SimpleNamespace(sample=self.keeps * z - 1)

    moments = reference(WORLD, Eyes(), 400)
    assert moments.count == 400
    whole, dark = (reconstruction_distance(WORLD, Darker(k), Eyes(), moments, 400) for k in (1.0, 0.5))
    assert whole < 1e-3 < 0.01 < dark
    assert Taste()(torch.ones(1, 3, 8, 8), torch.zeros(1, 1, dtype=torch.long)) == 1
