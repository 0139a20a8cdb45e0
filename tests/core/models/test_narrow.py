"""A float32 network that lies in 16 bits between uses: the same numbers, half the memory, unchanged afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.core.training.test_unet import UnetBackbone
from tests.core.training.toy import ToyBackbone
from torch import nn

from selfnpo_core.models.storage import LAYERS, compute_dtype, narrow, widened_with
from selfnpo_core.weights import inspection

CPU = torch.device("cpu")


def stored_in(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A float32 network with the numbers of a checkpoint in 16 bits."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return network


def kept(network: nn.Module) -> dict[str, torch.dtype]:
    """Types of what lies in memory of the layers' weights, without adapters'."""
    wanted = {id(layer) for layer in network.modules() if isinstance(layer, LAYERS)}
    found = {}
    for name, layer in network.named_modules():
        if id(layer) in wanted and ".lora_" not in name:
            held = [p for part, p in layer.named_parameters() if "weight" in part]
            found[name] = held[0].dtype
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", [False, True])
def test_a_network_of_16_bits_calculates_as_in_32(dtype: torch.dtype, adapter: bool) -> None:
    backbone = UnetBackbone()
    network: Any = stored_in(backbone.denoiser, dtype).requires_grad_(False)
    if adapter:
        config = LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False)
        network.add_adapter(config, "npo")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    backbone.embed(["a red circle"])
    inputs = torch.randn(2, *backbone.latent_shape), torch.tensor([500, 20]), torch.tensor([0, -1])
    with torch.no_grad():
        whole = backbone.predict(*inputs)
        with narrow(network, CPU):
            assert set(kept(network).values()) == {dtype}
            assert compute_dtype(network) == torch.float32
            assert torch.equal(backbone.predict(*inputs), whole)
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name]) for name in before)


def test_weights_that_16_bits_would_round_stay_in_32() -> None:
    network = ToyBackbone().denoiser
    stored_in(network.to_q, torch.bfloat16)
    with narrow(network, CPU):
        assert kept(network) == {"conv": torch.float32, "to_q": torch.bfloat16, "to_out": torch.float32}


def test_an_offset_is_added_in_32_bits() -> None:
    """One that is far below half a unit in the last place of 16 bits."""
    network = stored_in(ToyBackbone().denoiser, torch.bfloat16)
    weight = network.to_q.weight.detach().clone()
    delta = 1e-6 * torch.randn_like(weight)
    with narrow(network, CPU):
        with widened_with(network, "to_q.weight", delta, 0.5):
            assert torch.equal(network.to_q.weight, weight.add(delta, alpha=0.5))
            assert not torch.equal(network.to_q.weight, weight)
        assert torch.equal(network.to_q.weight, weight)


def test_inspection_holds_no_copy_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """And measures the same of it, bit for bit, biases and norms included."""

    class Recorded(ToyBackbone):
        device = CPU

        def __init__(self) -> None:
            super().__init__()
            self.seen: set[torch.dtype] = set()

        def predict(self, x_t: Any, t: Any, prompt: Any) -> Any:
            self.seen |= set(kept(self.denoiser).values())
            return super().predict(x_t, t, prompt)

    @contextmanager
    def whole(network: nn.Module, device: torch.device) -> Iterator[None]:
        yield

    generator = torch.Generator().manual_seed(1)
    shapes = {name: p.shape for name, p in ToyBackbone().denoiser.named_parameters()}
    delta = {name: 1e-4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    others = {"same": delta, "none": {}, "half": {name: tensor / 2 for name, tensor in delta.items()}}
    found = []
    for way in (narrow, whole):
        backbone = Recorded()
        stored_in(backbone.denoiser, torch.bfloat16)
        before = {name: p.detach().clone() for name, p in backbone.denoiser.named_parameters()}
        monkeypatch.setattr(inspection, "narrow", way)
        found.append(inspection.effect_errors(backbone, delta, others, rows=2, steps=3))
        assert backbone.seen == {torch.bfloat16 if way is narrow else torch.float32}
        assert all(torch.equal(p, before[name]) for name, p in backbone.denoiser.named_parameters())
    assert found[0] == found[1]
    assert (found[0]["same"], found[0]["none"]) == (0, pytest.approx(1))
    assert 0.4 < found[0]["half"] < 0.6
