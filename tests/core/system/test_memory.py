"""Bytes that a piece of code holds at once."""

import torch

from selfnpo_core.system.memory import available, peak_tensor_bytes

KIB = torch.empty(256).nbytes


def test_the_peak_is_the_most_held_at_once():
    def work() -> None:
        for _ in range(3):
            one = torch.empty(256)
            other = torch.empty(256)
            del one, other

    assert peak_tensor_bytes(work) == 2 * KIB


def test_the_result_counts_and_what_was_there_before_does_not():
    before = [torch.empty(256 * 64)]

    def work() -> torch.Tensor:
        before.clear()
        return torch.empty(256)

    assert peak_tensor_bytes(work) <= KIB
    assert peak_tensor_bytes(lambda: torch.empty(256)) == KIB


def test_activations_are_held_only_with_gradients():
    layers = torch.nn.Sequential(*(torch.nn.Sigmoid() for _ in range(8)))
    x = torch.empty(256, requires_grad=True)
    assert peak_tensor_bytes(lambda: layers(x), grad=True) == 8 * KIB
    assert peak_tensor_bytes(lambda: layers(x)) <= 3 * KIB


def test_the_hosts_memory_has_some_left():
    assert available(torch.device("cpu")) > 1 << 20
