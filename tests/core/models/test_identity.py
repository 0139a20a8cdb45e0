"""Which base a model is: what its hash and its fingerprint see, and what they do not."""

import math

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tests.core.training.toy import ToyNet

from selfnpo_core.models.identity import FINGERPRINT_SIZE, SAME_BASE, distance, fingerprint, weights_hash


def test_the_hash_sees_one_changed_weight_and_a_changed_name():
    weights = ToyNet().state_dict()
    before = weights_hash(weights)
    assert weights_hash({f"{name}s": tensor for name, tensor in weights.items()}) != before
    weights["conv.bias"] = weights["conv.bias"].clone()
    weights["conv.bias"][1] += 1e-6
    assert weights_hash(weights) != before


def test_the_hash_sees_a_shape():
    assert weights_hash({"a": torch.ones(2, 3)}) != weights_hash({"a": torch.ones(3, 2)})


def test_neither_the_order_of_tensors_nor_a_wider_type_changes_the_hash():
    weights = ToyNet().half().state_dict()
    turned = dict(reversed(weights.items()))
    wide = {name: tensor.float() for name, tensor in weights.items()}
    assert weights_hash(weights) == weights_hash(turned) == weights_hash(wide)


def test_an_adapter_does_not_count():
    network = ToyNet()
    before = weights_hash(network), fingerprint(network)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["conv", "to_q"], init_lora_weights=False), network)
    assert (weights_hash(network), fingerprint(network)) == before


def test_integers_do_not_count():
    assert weights_hash({"a": torch.ones(2), "steps": torch.tensor(7)}) == weights_hash({"a": torch.ones(2)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fingerprint_of_a_narrower_copy_is_that_of_the_same_base(dtype):
    wide, narrow, other = ToyNet(), ToyNet().to(dtype), ToyNet(seed=1)
    assert weights_hash(wide) != weights_hash(narrow)
    assert 0 < distance(fingerprint(wide), fingerprint(narrow)) < SAME_BASE
    assert distance(fingerprint(wide), fingerprint(other)) > 0.5


def test_a_fingerprint_is_spread_over_all_weights():
    values = torch.arange(10.0 * FINGERPRINT_SIZE)
    parts = {"a": values[:1000].reshape(10, 100), "b": values[1000:]}
    assert fingerprint(parts) == values[::10].tolist()
    assert len(fingerprint({"a": torch.ones(3)})) == FINGERPRINT_SIZE
    assert fingerprint({}) == []


def test_what_cannot_be_compared_is_infinitely_far():
    assert distance([1.0], [1.0, 2.0]) == distance([], []) == math.inf
    assert distance([0.0], [1.0]) == math.inf
    assert distance([0.0], [0.0]) == 0
    assert distance([3.0, 4.0], [3.0, 3.0]) == pytest.approx(0.2)
