"""Tensors in pieces, in one process: what is made whole is what was cut."""

import copy
import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from tests.core.training.toy import ToyNet
from tests.tools.launching import environment, free_port
from torch.distributed.tensor import DTensor

from selfnpo_core.training.sharding import entire, fill, like, pieces, release, split, walk, whole

CPU = torch.device("cpu")


@pytest.fixture
def cut(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    network = ToyNet()
    before = copy.deepcopy(network.state_dict())
    split(network, CPU, [network.conv.weight])
    yield network, before
    dist.destroy_process_group()


def test_all_parameters_are_cut_but_the_ignored(cut):
    network, _ = cut
    kinds = {name: isinstance(parameter, DTensor) for name, parameter in network.named_parameters()}
    assert kinds == {name: name != "conv.weight" for name in kinds}


def test_a_walk_makes_whole_copies(cut):
    network, before = cut
    found = walk(dict(network.named_parameters()))
    assert {name: (o.shape, o.dtype) for name, o in found.outlines.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in before.items()
    }
    for name, tensor in found.items():
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, before[name])
        tensor.zero_()
    assert all(torch.equal(entire(p.detach()), before[n]) for n, p in network.named_parameters())


def test_filled_tensors_are_cut_as_they_were(cut):
    network, before = cut
    parameters = dict(network.named_parameters())
    fill(parameters, {name: tensor + 1 for name, tensor in before.items()})
    for name, parameter in parameters.items():
        assert isinstance(parameter, DTensor) is (name != "conv.weight")
        assert torch.equal(entire(parameter.detach()), before[name] + 1)


def test_pieces_are_what_an_average_may_write_to(cut):
    network, before = cut
    for piece in pieces(network.parameters()):
        piece.mul_(2)
    assert all(torch.equal(entire(p.detach()), 2 * before[n]) for n, p in network.named_parameters())


def test_a_value_is_cut_like_a_tensor(cut):
    network, before = cut
    value = torch.randn_like(before["to_q.weight"])
    made = like(value, network.to_q.weight)
    assert isinstance(made, DTensor)
    assert made.placements == network.to_q.weight.placements
    assert torch.equal(entire(made), value)


def test_ordinary_tensors_pass_through():
    own = torch.nn.Parameter(torch.arange(3.0))
    with whole([own], changed=True):
        assert entire(own) is own
    assert like(own, torch.zeros(3)) is own
    assert walk({"own": own}, lambda name, tensor: tensor * 2)["own"].tolist() == [0, 2, 4]
    assert walk({"own": own})["own"].data_ptr() != own.data_ptr()
    (piece,) = pieces([own])
    assert piece.data_ptr() == own.data_ptr()
    release([own])
    fill({"own": own}, {"own": torch.ones(3)})
    assert own.tolist() == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["full", "lora"])
def test_zero3_cuts_a_network_while_it_is_brought_to_the_device(what, tmp_path):
    """Left to DeepSpeed, all of it lies there whole first."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    module = ["--module", "tests.core.training.cutting", what, str(tmp_path / "said.json")]
    start = [sys.executable, *launcher, *module]
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["same"]
    assert not said["moved"]  # all of it to the device
    assert said["most"] <= 4 * 256 * 256
    assert said["buckets"] == [said["trained"]]  # as small a model as this goes in one
