"""The optimizer's step and state, on one process; under other engines: tests/tools/test_engines.py."""

import math

import pytest
import torch
import torch.distributed as dist
from tests.core.training.toy import ToyNet, toy_recipe

from selfnpo_core.training.accelerators import make_accelerator
from selfnpo_core.training.sharding import entire, split
from selfnpo_core.training.steps import SplitSteps, TorchSteps, WholeSteps

ASKED = torch.ones(2, 4, 4, 4), torch.tensor([500, 100]), torch.ones(2, 16)


@pytest.fixture(params=[WholeSteps, SplitSteps])
def make(request, tmp_path):
    """Steps of a fresh network, whole or in (one) piece."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)

    def made(**changes) -> TorchSteps:
        recipe = toy_recipe(weight_decay=0.0, learning_rate=0.1, **changes)
        network = ToyNet()
        if request.param is SplitSteps:
            split(network, torch.device("cpu"))
        return request.param(make_accelerator(recipe), recipe, network, dict(network.named_parameters()))

    yield made
    dist.destroy_process_group()


def update(steps: TorchSteps, factor: float = 1.0):
    for _ in range(steps.recipe.grad_accumulation):
        with steps.part():
            steps.backward(factor * steps.network(*ASKED).square().mean())
    return steps.finish()


def weights(steps: TorchSteps) -> dict[str, torch.Tensor]:
    return {name: entire(parameter.detach()).clone() for name, parameter in steps.parameters.items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    return max(float((after[name] - before[name]).abs().max()) for name in before)


def test_an_update_moves_by_the_rate_that_was_set(make):
    steps = make()
    before = weights(steps)
    steps.set_rate(0.25)
    result = update(steps)
    assert result.moved
    assert not result.skipped
    assert moved(before, weights(steps)) == pytest.approx(0.25, rel=1e-3)  # Adam's first


def test_the_norm_is_of_the_gradient_before_it_is_clipped(make):
    norms = []
    for limit in (None, 1e-3):
        steps = make(max_grad_norm=limit)
        network = ToyNet()
        loss = network(*ASKED).square().mean()
        loss.backward()
        expected = math.hypot(*(float(p.grad.norm()) for p in network.parameters()))
        norms.append(update(steps).grad_norm)
        assert norms[-1] == pytest.approx(expected, rel=1e-4)


def test_the_loss_is_the_mean_of_the_parts(make):
    steps = make(batch_size=1, grad_accumulation=2)
    losses = []
    for factor in (1.0, 3.0):
        with steps.part():
            loss = factor * steps.network(*ASKED).square().mean()
            losses.append(loss.item())
            steps.backward(loss)
    assert steps.finish().loss == pytest.approx(sum(losses) / 2)


def test_what_is_not_finite_moves_nothing_and_leaves_no_gradient(make):
    steps = make()
    before = weights(steps)
    result = update(steps, math.nan)
    assert (result.moved, result.skipped) == (False, True)
    assert moved(before, weights(steps)) == 0
    assert update(steps).moved


def test_an_optimizer_goes_on_from_a_state(make):
    first, second = make(), make()
    for _ in range(2):
        update(first)
    tensors, values = first.state()
    assert {name.partition(".")[2] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    shapes = [parameter.shape for parameter in first.parameters.values()]
    assert [tensors[f"{index}.exp_avg"].shape for index in range(len(shapes))] == shapes
    with torch.no_grad():
        for name, parameter in second.parameters.items():
            parameter.copy_(first.parameters[name])
    second.load({name: tensor.clone() for name, tensor in tensors.items()}, values)
    update(first), update(second)
    assert moved(weights(first), weights(second)) == 0
