"""A frozen base in 8 bits or in the host's memory: what is rounded, what is saved, that training goes on the same."""

import pytest
import torch
from tests.core.training.test_resume import state_of
from tests.core.training.test_unet import UnetBackbone
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core import InputError
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.models.storage import FP8, compute_dtype, is_kept, store_base
from selfnpo_core.training import dry_run, train
from selfnpo_core.training.accelerators import make_accelerator
from selfnpo_core.training.engine import Engine
from selfnpo_core.training.measuring import measure

SETTINGS = {"gradient_checkpointing": True, "targets": "all", "steps": 3}


def recipe(**changes):
    return toy_recipe(**{**SETTINGS, **changes})


def updates(backbone, **changes):
    """Losses, and the student's weights after them."""
    made = recipe(**changes)
    backbone.embed(PROMPTS)
    engine = Engine(backbone, made, len(PROMPTS), make_accelerator(made))
    engine.warm_up()
    losses = [update.loss for update in engine.updates()]
    weights = {name: p.detach().clone() for name, p in engine.student.parameters.items()}
    engine.close()
    return losses, weights


@pytest.mark.parametrize("storage", ["fp8", "int8"])
def test_a_base_in_8_bits_trains_nearly_the_same(storage):
    losses, weights = updates(UnetBackbone())
    backbone = UnetBackbone()
    rounded, other = updates(backbone, base_storage=storage)
    assert rounded != losses
    assert rounded == pytest.approx(losses, rel=0.1)
    assert weights.keys() == other.keys()
    moved = torch.cat([(weights[name] - other[name]).flatten() for name in weights]).norm()
    assert moved < 0.3 * torch.cat([weight.flatten() for weight in weights.values()]).norm()
    assert compute_dtype(backbone.denoiser) == torch.float32
    plain, original = dict(backbone.denoiser.named_parameters()), dict(UnetBackbone().denoiser.named_parameters())
    assert plain.keys() == original.keys()
    apart = {name for name in plain if not torch.equal(plain[name], original[name])}
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" in apart
    assert ("conv_in.weight" in apart) == (storage == "fp8")
    assert not any("norm" in name for name in apart)
    assert all(plain[name].dtype == torch.float32 for name in plain)


def test_what_is_rounded_and_what_is_left(monkeypatch):
    network = UnetBackbone().denoiser.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    store_base(network, "fp8", "tiny")
    for name, parameter in network.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, before[name])
        elif "parametrizations" in name:
            assert torch.equal(parameter, before[name.replace("parametrizations.weight.original", "weight")].to(FP8))


@pytest.mark.parametrize("storage", ["fp8", "int8"])
def test_the_estimate_of_a_base_in_8_bits_is_what_is_seen(storage):
    backbone = UnetBackbone()
    made = recipe(base_storage=storage, steps=9, batch_size=2)
    asked = dry_run(backbone, made, PROMPTS)
    assert all(p.dtype == torch.float32 for p in backbone.denoiser.parameters())  # a dry run rounds nothing
    usual = dry_run(backbone, made.model_copy(update={"base_storage": "same"}), PROMPTS)
    base = [next(part.bytes for part in some.memory if part.name == "base weights") for some in (asked, usual)]
    assert base[0] < (0.4 if storage == "fp8" else 0.75) * base[1]  # int8 leaves convolutions as they are
    assert asked.device_bytes == pytest.approx(measure(backbone, made, PROMPTS).bytes, rel=0.15)


@pytest.mark.parametrize("storage", ["same", "fp8"])
def test_layers_that_wait_elsewhere_train_the_same(storage, monkeypatch):
    """On a CPU nothing moves, but every layer works with a copy of what is kept."""
    losses, weights = updates(UnetBackbone(), base_storage=storage)
    monkeypatch.setattr("selfnpo_core.training.accelerators.check_engine", lambda *_: "single")
    backbone = UnetBackbone()
    again, other = updates(backbone, base_storage=storage, group_offload=True)
    assert again == losses
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    if storage == "same":
        assert weights_hash(backbone.denoiser) == backbone.base_hash


def test_only_what_is_not_kept_goes_to_the_device():
    """`meta` stands for a device that is not the host's memory."""
    network = UnetBackbone().denoiser.requires_grad_(False)
    store_base(network, "same", "tiny", torch.device("meta"))
    for path, parameter in list(network.named_parameters()):
        if not is_kept(path):
            module, _, name = path.rpartition(".")
            elsewhere = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
            network.get_submodule(module)._parameters[name] = elsewhere
    where = {name: parameter.device.type for name, parameter in network.named_parameters()}
    assert {device for name, device in where.items() if is_kept(name)} == {"cpu"}
    assert {device for name, device in where.items() if not is_kept(name)} == {"meta"}
    x = torch.empty(1, 4, 8, 8, device="meta")
    out = network(x, torch.empty(1, device="meta"), encoder_hidden_states=torch.empty(1, 3, 16, device="meta")).sample
    assert out.device.type == "meta"


def test_the_estimate_of_an_offloaded_base():
    made = recipe(steps=9, batch_size=2)
    usual, asked = (
        dry_run(UnetBackbone(), made.model_copy(update={"group_offload": on}), PROMPTS) for on in (False, True)
    )
    parts = [{part.name: part for part in some.memory} for some in (usual, asked)]
    waiting = parts[1]["base weights until they are used"]
    assert not waiting.on_device
    assert waiting.bytes + parts[1]["base weights"].bytes == parts[0]["base weights"].bytes
    in_use = asked.memory[-1].bytes - usual.memory[-1].bytes
    assert 0 < in_use < waiting.bytes
    assert asked.device_bytes < usual.device_bytes


def test_a_run_on_a_rounded_base_resumes_bit_for_bit(tmp_path):
    for name, parts in (("whole", (4,)), ("parts", (2, 4))):
        for index, steps in enumerate(parts):
            made = recipe(base_storage="fp8", steps=steps)
            train(UnetBackbone(), made, PROMPTS, tmp_path / name, resume=index > 0, progress=False)
    one, other = state_of(tmp_path / "whole", 4), state_of(tmp_path / "parts", 4)
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"base_storage": "fp8", "gradient_checkpointing": False}, "saves nothing without gradient_checkpointing"),
        ({"base_storage": "int8", "train": "full"}, "frozen base under a LoRA"),
        ({"base_storage": "fp8", "engine": "zero3"}, "both move"),
        ({"group_offload": True, "sample_every": 2}, "sample_every"),
        ({"group_offload": True, "base_storage": "int8"}, "same or fp8"),
    ],
)
def test_what_does_not_go_together(changes, word):
    with pytest.raises(InputError, match=word):
        recipe(**changes)


def test_what_cannot_run_here(monkeypatch):
    with pytest.raises(InputError, match="here is none"):
        make_accelerator(recipe(group_offload=True))
    with pytest.raises(InputError, match="cannot be kept otherwise"):
        store_base(ToyBackbone().denoiser, "fp8", "toy")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install torchao"):
        make_accelerator(recipe(base_storage="int8"))


@pytest.mark.parametrize("optimizer", ["adamw_fused", "adamw8bit"])
def test_other_forms_of_adamw_move_as_it_does(optimizer):
    pytest.importorskip("bitsandbytes")
    usual, weights = updates(UnetBackbone(), rank=64)
    losses, other = updates(UnetBackbone(), rank=64, optimizer=optimizer)
    near = 1e-3 if optimizer == "adamw_fused" else 3e-2
    assert losses == pytest.approx(usual, rel=near)
    both = [torch.cat([some[name].flatten() for name in weights]) for some in (weights, other)]
    assert (both[1] - both[0]).norm() < near * both[0].norm()
    assert not torch.equal(*both)
