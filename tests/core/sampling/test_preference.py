"""A pipeline at θ + η, and η itself where it is asked for."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.core.training.toy import ToyNet
from torch import nn

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.options import Negative
from selfnpo_core.sampling.preference import Preference, Whole, with_preference


@dataclass
class Job:
    preference: str | None = "tuned"
    negative: Negative | None = None


def negative(alpha: float) -> Negative:
    return Negative(path=Path("npo.safetensors"), beta=1.0, alpha=alpha, condition="null", other_base=True)


def tuned() -> nn.Module:
    network = ToyNet()
    with torch.no_grad():
        network.to_q.weight += 0.5
    return network


def find(name: str) -> Preference:
    return Preference(name=name, whole=lambda: Whole(denoiser=tuned()))


@pytest.fixture
def pipe():
    return SimpleNamespace(denoiser=ToyNet(), name_or_path="toy/base")


def assert_tuned(network: nn.Module) -> None:
    assert all(torch.equal(own, other) for own, other in zip(network.parameters(), tuned().parameters(), strict=True))


@pytest.mark.parametrize("job", [Job(), Job(negative=negative(1.0))])
def test_eta_is_not_kept_where_nobody_asks_for_it(pipe, job):
    prepared = with_preference(pipe, "denoiser", job, find)
    assert prepared.pipe is pipe
    assert prepared.eta is None
    assert_tuned(pipe.denoiser)


def test_eta_is_what_the_weights_were_moved_by(pipe):
    prepared = with_preference(pipe, "denoiser", Job(negative=negative(0.5)), find)
    assert_tuned(pipe.denoiser)
    assert prepared.eta.keys() == {"to_q.weight"}
    torch.testing.assert_close(prepared.eta["to_q.weight"], torch.full((48, 81), 0.5))
    assert set(vars(pipe)) == {"denoiser", "name_or_path"}


def test_without_a_preference_nothing_is_changed(pipe):
    prepared = with_preference(pipe, "denoiser", Job(preference=None, negative=negative(0.5)), find)
    assert (prepared.pipe, prepared.eta) == (pipe, None)
    own = zip(pipe.denoiser.parameters(), ToyNet().parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in own)


def test_weights_of_another_architecture_are_refused(pipe):
    other = Preference(name="other", whole=lambda: Whole(denoiser=nn.Linear(2, 2)))
    with pytest.raises(InputError, match="tuned"):
        with_preference(pipe, "denoiser", Job(), lambda name: other)
