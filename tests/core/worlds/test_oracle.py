"""An oracle that is trained on real samples, and what it is shown of them."""

import torch
from tests.core.experiments.dots import Dots
from torch import nn

from selfnpo_core.worlds.oracle import augment, train_oracle


def test_augmentation_leaves_what_is_to_be_seen():
    data = torch.rand(8, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = augment(data, torch.Generator().manual_seed(1))
    assert seen.shape == data.shape
    assert 0 < (seen - data).abs().mean() < 0.3


def test_an_oracle_is_trained_once(tmp_path, capsys):
    class Oracle(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8 * 8, 2)

        def forward(self, x):
            return [self.head(x.mean(dim=1).flatten(1))]

    def train(steps):
        torch.manual_seed(0)
        g = torch.Generator().manual_seed(1)
        return train_oracle(
            Dots(), Oracle(), tmp_path / "oracle.safetensors", steps=steps, batch=64, lr=0.05, generator=g
        )

    made = train(40)
    assert "joint accuracy on real dots 1.0000" in capsys.readouterr().out
    assert not made.training
    again = train(10**9)  # read, not trained
    assert torch.equal(again.head.weight, made.head.weight)
