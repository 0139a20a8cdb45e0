"""Layers that a network's class keeps in float32, whatever the rest is in."""

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from tests.tiny import sd15, wan

from selfnpo_core.models.storage import cast, compute_dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_is_what_loading_in_a_type_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    network = wan().transformer
    network.save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    ours = cast(network, dtype)
    kinds = {name: tensor.dtype for name, tensor in [*ours.named_parameters(), *ours.named_buffers()]}
    assert kinds == {name: tensor.dtype for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]}
    assert set(kinds.values()) == {torch.float32, dtype}
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert compute_dtype(ours) == compute_dtype(torch.nn.Sequential(ours)) == loaded.dtype == dtype
    assert {tensor.dtype for tensor in cast(ours, torch.float32).parameters()} == {torch.float32}
    assert compute_dtype(ours) == torch.float32


def test_a_network_that_keeps_nothing_is_cast_whole() -> None:
    network = cast(sd15().unet, torch.bfloat16)
    assert {tensor.dtype for tensor in network.parameters()} == {torch.bfloat16} == {compute_dtype(network)}
