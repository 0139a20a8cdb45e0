"""What all that is put on a denoiser shares: whose forward it is, and that it comes off again."""

import math
from contextlib import ExitStack

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from selfnpo_core.adapters.hooks import bare, batch_of, forward_of, replace, replace_forward, runs, strength
from selfnpo_core.errors import InputError

X = torch.ones(1, 2)


def ten(*args, **kwargs):
    return torch.full((1, 2), 10.0)


@pytest.fixture
def layer() -> nn.Module:
    return nn.Linear(2, 2)


def test_a_forward_is_replaced_until_it_is_undone(layer):
    before, answer = set(vars(layer)), layer(X)
    with ExitStack() as undo:
        replace_forward(undo, layer, ten)
        assert layer(X).tolist() == [[10, 10]]
        assert forward_of(layer) is ten
    assert set(vars(layer)) == before
    assert torch.equal(layer(X), answer)


def test_a_replacement_outlives_offloading(layer):
    """Hooks that were there before are taken off and put on again around it, as after every call of a pipeline."""
    answer = layer(X)
    add_hook_to_module(layer, ModelHook())
    undo = ExitStack()
    replace_forward(undo, layer, ten)
    assert layer(X).tolist() == [[10, 10]]
    remove_hook_from_module(layer)
    assert layer(X).tolist() == [[10, 10]]
    add_hook_to_module(layer, ModelHook())
    assert forward_of(layer) is ten
    undo.close()
    assert torch.equal(layer(X), answer)
    remove_hook_from_module(layer)
    assert torch.equal(layer(X), answer)


def test_replacements_come_off_in_any_order_of_hooks(layer):
    answer = layer(X)
    undo = ExitStack()
    replace_forward(undo, layer, ten)
    add_hook_to_module(layer, ModelHook())
    assert layer(X).tolist() == [[10, 10]]
    undo.close()
    assert torch.equal(layer(X), answer)
    remove_hook_from_module(layer)
    assert torch.equal(layer(X), answer)


def test_a_forward_runs_within_another_that_tells_what_is_inside(layer):
    def outer(x):
        return ten()

    def stranger(x):
        return ten()

    outer.inside = ten
    with ExitStack() as undo:
        replace_forward(undo, layer, outer)
        assert runs(layer, outer)
        assert runs(layer, ten)
        assert not runs(layer, stranger)


def test_an_attribute_is_set_over_a_method_or_a_value(layer):
    layer.mark = 1
    with ExitStack() as undo:
        replace(undo, layer, "mark", 2)
        replace(undo, layer, "extra_repr", lambda: "other")
        assert (layer.mark, layer.extra_repr()) == (2, "other")
    assert layer.mark == 1
    assert "extra_repr" not in vars(layer)


def test_the_network_inside_of_a_compiled_one(layer):
    assert bare(torch.compile(layer)) is layer
    assert bare(layer) is layer


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((torch.ones(3, 1),), {}), ((), {"hidden_states": torch.ones(3, 1)}), ((), {"sample": torch.ones(3)})],
)
def test_the_batch_of_a_forward(args, kwargs):
    assert batch_of(args, kwargs) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None])
def test_a_strength_is_a_finite_number(value):
    assert strength(2, "beta") == 2.0
    with pytest.raises(InputError, match="beta is"):
        strength(value, "beta")
