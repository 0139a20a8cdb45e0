"""All weights in training: how far they are from the base."""

import pytest
import torch
from tests.core.training.engines import engine
from tests.core.training.toy import ToyBackbone


def test_full_drift_is_the_distance_from_the_base():
    with engine(train="full") as made:
        update = list(made.updates())[-1]
        delta = made.student.delta()
        now = dict(made.student.parameters)
    base = dict(ToyBackbone().denoiser.named_parameters())
    squares = sum(float((now[name] - base[name]).detach().square().sum()) for name in base)
    size = sum(float(p.detach().square().sum()) for p in base.values())
    assert update.drift == pytest.approx((squares / size) ** 0.5, rel=1e-5)
    for name, offset in delta.items():
        torch.testing.assert_close(offset.float(), (now[name] - base[name]).detach(), rtol=1e-2, atol=1e-6)
