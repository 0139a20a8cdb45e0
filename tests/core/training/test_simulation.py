"""An update on shapes alone: what it counts, and that it leaves the networks as they were."""

import torch
from tests.core.training.toy import ToyNet
from torch import nn

from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.system.private import fake_tensors
from selfnpo_core.training.simulation import HeldBytes, on_meta, replaced

KIB = torch.empty(256).nbytes


def test_bytes_are_held_while_a_tensor_or_a_view_of_it_is():
    with fake_tensors(), HeldBytes() as held:
        one = torch.empty(256)
        view = one[:10]
        del one
        assert held.now == KIB
        other = torch.empty(512)
        del view, other
        assert held.now == 0
    assert held.peak == 3 * KIB


def test_what_is_known_counts_as_nothing():
    with fake_tensors():
        known = torch.empty(256)
        with HeldBytes([known]) as held:
            known.add_(1)
            known.view(16, 16).mul_(2)
        assert held.peak == 0


def test_the_peak_of_a_simulated_pass_is_that_of_a_real_one():
    asked = torch.ones(64, 4, 4, 4), torch.full((64,), 500), torch.ones(64, 16)
    network = ToyNet()
    real = peak_tensor_bytes(lambda: network(*asked).sum(), grad=True)
    with fake_tensors(), replaced([network], torch.empty_like) as weights:
        simulated = [torch.empty_like(tensor) for tensor in asked]
        with HeldBytes([*weights, *simulated]) as held:
            network(*simulated).sum()
    assert abs(held.peak - real) <= 0.1 * real


def test_weights_are_replaced_within_the_block_and_the_same_again_after_it():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    network[0].weight.requires_grad_(False)
    before = dict(network.named_parameters()) | dict(network.named_buffers())
    with replaced([network], on_meta) as made:
        inside = dict(network.named_parameters()) | dict(network.named_buffers())
        assert all(tensor.is_meta for tensor in inside.values())
        assert len(made) == len(before)
        assert {n: p.requires_grad for n, p in inside.items()} == {n: p.requires_grad for n, p in before.items()}
    after = dict(network.named_parameters()) | dict(network.named_buffers())
    assert all(after[name] is tensor for name, tensor in before.items())


def test_a_weight_that_two_layers_share_stays_shared():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = one.weight
    with replaced([one, other], on_meta) as made:
        assert other.weight is one.weight
        assert len(made) == 3
