"""What a backbone is told of the tensors that it is given."""

import torch

from selfnpo_core.models.backbone import has_numbers
from selfnpo_core.system.private import fake_tensors


def test_shapes_alone_have_no_numbers():
    with fake_tensors():
        simulated = torch.ones(2) + 1
    assert not has_numbers(simulated)
    assert not has_numbers(torch.ones(2, device="meta"))


def test_ordinary_tensors_and_parameters_have_numbers():
    assert has_numbers(torch.ones(2))
    assert has_numbers(torch.nn.Parameter(torch.ones(2)))
