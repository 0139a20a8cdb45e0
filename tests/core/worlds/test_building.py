"""Training in stages: what is interrupted goes on bit for bit."""

import pytest
import torch
from torch import nn

from selfnpo_core.worlds.building import cosine, fingerprint, train_averaged


class Halt(Exception):
    pass


def train(path, halt=None, steps=6):
    torch.manual_seed(0)
    net, seen = nn.Linear(4, 1), []

    def loss_of(generator):
        seen.append(1)
        if len(seen) == halt:
            raise Halt
        x = torch.randn((8, 4), generator=generator)
        return (net(x) - x.sum(dim=1, keepdim=True)).square().mean()

    generator = torch.Generator().manual_seed(1)
    return train_averaged(net, loss_of, path, steps=steps, lr=1e-2, generator=generator, keep_every=2)


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole.safetensors")
    with pytest.raises(Halt):
        train(tmp_path / "halted.safetensors", halt=6)  # the state after four updates is on disk
    gone_on = train(tmp_path / "halted.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"whole.safetensors", "halted.safetensors"}
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), gone_on.parameters(), strict=True))


def test_what_is_kept_is_the_average(tmp_path):
    averaged, first = train(tmp_path / "one.safetensors", steps=1), None
    torch.manual_seed(0)
    first = nn.Linear(4, 1)
    step = averaged.weight - first.weight  # 9/10 of AdamW's first step at the first rate of the warm-up
    torch.testing.assert_close(step.abs().max(), torch.tensor(0.9 * 1e-2 / 200), rtol=2e-2, atol=0)


def test_the_rate_rises_and_falls():
    rates = [cosine(step, 100, warmup=10) for step in range(100)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=2e-3)


def test_a_fingerprint_is_that_of_the_weights():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert fingerprint(one) != fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(other)
    assert len(fingerprint(one)) == 8
