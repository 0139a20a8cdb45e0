"""Devices by the names that users give them."""

import pytest
import torch

from selfnpo_core.errors import InputError
from selfnpo_core.system.devices import best_device


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_a_device_that_is_there(name):
    assert best_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "xpu"])
def test_a_device_that_cannot_be_used_is_named_in_one_line(name):
    with pytest.raises(InputError, match=f"device {name} cannot be used") as error:
        best_device(name)
    assert "\n" not in str(error.value)


def test_auto_is_a_device_that_can_be_used():
    assert torch.ones(1, device=best_device()).sum() == 1
