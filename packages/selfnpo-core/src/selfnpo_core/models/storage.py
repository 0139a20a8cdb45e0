"""How the frozen base under a LoRA lies in memory: as it was loaded, in 8 bits, or in the host's until it is used.

    fp8    weights of linear and convolution layers are float8 (e4m3; 2209.05433) between uses, cast at each
    int8   weights of linear layers are torchao's 8-bit integers with a scale a row

Offloaded weights, as they are or in fp8, wait in the host's memory. All of it leaves out norms, patch and position
embeddings, as diffusers' layerwise casting does. That itself, and diffusers' group offloading, are for inference only:
they take the weights of convolutions and norms away before the backward pass. An adapter on top learns against the
rounded base, and what was rounded away is not kept anywhere.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.nn.utils import parametrize

from selfnpo_core.errors import InputError
from selfnpo_core.system import private

FP8 = torch.float8_e4m3fn
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def compute_dtype(network: nn.Module) -> torch.dtype:
    """The type that a network's layers calculate in: of its own weights, not of adapters, of what is fetched, or of the
    few that stay float32 in any case."""
    exact = set(private.float32_layers(network))
    own = (
        p
        for name, p in network.named_parameters()
        if ".lora_" not in name and not is_kept(name) and exact.isdisjoint(name.split("."))
    )
    return next(p.dtype for p in own if p.dtype.is_floating_point and p.dtype.itemsize > 1)


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Bring a network into a type, in place, as diffusers loads it: in 16 bits but for what its class keeps in float32,
    and buffers that are in no file."""
    exact = set(private.float32_layers(network)) if dtype.itemsize < 4 else set()
    if not exact:
        return nn.Module.to(network, dtype)  # diffusers' own warns of what would be kept
    stored = set(network.state_dict(keep_vars=True))
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in stored and tensor.is_floating_point() and exact.isdisjoint(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return network


class _Fetch(nn.Module):
    """The weight that a layer calculates with, from the one that is kept. It is saved for the backward pass, and gone
    with it; under gradient checkpointing that is one block's at a time."""

    def __init__(self, dtype: torch.dtype, device: torch.device | None):
        super().__init__()
        self.dtype, self.device = dtype, device

    def forward(self, kept: Tensor) -> Tensor:
        if self.device is None or kept.is_meta:
            return kept.to(self.dtype)
        return kept.to(self.device, self.dtype, non_blocking=True, copy=True)


class _Widen(nn.Module):
    """The float32 weight of one that is kept in 16 bits without loss, and an offset β·δ that is added on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.offset: tuple[Tensor, float] | None = None

    def forward(self, kept: Tensor) -> Tensor:
        wide = kept.float()
        if self.offset is None:
            return wide
        delta, beta = self.offset
        return wide.add_(delta.to(wide), alpha=beta)


@contextmanager
def narrow(network: nn.Module, device: torch.device) -> Iterator[None]:
    """A float32 network on a device where it takes half the memory, and calculates bit for bit as it would in float32.

    Weights of layers lie there in 16 bits if that loses nothing, as of checkpoints that were stored so, and are float32
    only while their layer works. Afterwards the network is on the CPU, as it was.
    """
    layers = [m for name, m in network.named_modules() if isinstance(m, LAYERS) and ".lora_" not in name]
    narrowed = [layer for layer in layers if _keep_narrow(layer)]
    network.to(device)
    try:
        yield
    finally:
        network.to("cpu")
        for layer in narrowed:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            kept: Any = layer.weight
            layer.weight = nn.Parameter(kept.detach().float(), requires_grad=False)


def _keep_narrow(layer: nn.Module) -> bool:
    weight = layer.weight
    if not isinstance(weight, nn.Parameter) or weight.dtype != torch.float32 or weight.is_meta:
        return False
    kept = narrowest(weight.detach())
    if kept.dtype == torch.float32:
        return False
    layer.weight = nn.Parameter(kept, requires_grad=False)
    parametrize.register_parametrization(layer, "weight", _Widen(), unsafe=True)
    return True


def narrowest(tensor: Tensor) -> Tensor:
    """A float32 tensor's numbers in 16 bits, if none of them changes by that; else the tensor."""
    for dtype in (torch.bfloat16, torch.float16) if tensor.dtype == torch.float32 and not tensor.is_meta else ():
        kept = tensor.to(dtype)
        if torch.equal(kept.float(), tensor):
            return kept
    return tensor


@contextmanager
def resident(network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Within the block a network is on a device, in a type; afterwards it is where and as it was, without a copy.

    dtype: `None` for its own.
    """
    tensors = [*network.parameters(), *network.buffers()]
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else None)
        yield
    finally:
        for tensor, own in zip(tensors, kept, strict=True):
            tensor.data = own


@contextmanager
def widened_with(network: nn.Module, name: str, delta: Tensor, beta: float) -> Iterator[None]:
    """Within the block a weight that `narrow` keeps is θ + β·δ, of its parameter's name without it."""
    layer: Any = network.get_submodule(name.rpartition(".")[0])
    widen = layer.parametrizations.weight[0]
    before, widen.offset = widen.offset, (delta, beta)
    try:
        yield
    finally:
        widen.offset = before


def store_base(network: nn.Module, storage: str, name: str, offload: torch.device | None = None) -> None:
    """Bring a frozen network into this form, before adapters are added.

    offload: keep the layers' weights in the host's memory, and bring each to this device when it is used. A network on
    the meta device is only to be looked at: there the bytes are right, not the layers. Raises `InputError` for networks
    that are not diffusers'.
    """
    if (storage == "same" and offload is None) or _is_stored(network):
        return
    if not isinstance(network, ModelMixin):
        raise InputError(f"the layers of {name} cannot be kept otherwise: leave base_storage and group_offload out")
    skipped, kinds = _skipped(network), (nn.Linear,) if storage == "int8" else LAYERS
    layers = {path: m for path, m in network.named_modules() if isinstance(m, kinds) and not skipped.search(path)}
    if storage == "int8" and not next(network.parameters()).is_meta:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(network, Int8WeightOnlyConfig(), filter_fn=lambda _, path: path in layers)
        return
    fetch = _Fetch(compute_dtype(network), offload)
    for layer in layers.values():
        kept = layer.weight.detach() if storage == "same" else layer.weight.detach().to(FP8)
        if offload is not None and offload.type == "cuda":
            kept = kept.cpu().pin_memory()
        layer.weight = nn.Parameter(kept, requires_grad=False)
        parametrize.register_parametrization(layer, "weight", fetch, unsafe=True)


def is_kept(name: str) -> bool:
    """Whether a parameter of a stored network is fetched for each use, by its name."""
    return name.endswith("parametrizations.weight.original")


def place_rest(network: nn.Module, device: torch.device) -> None:
    """Bring all of an offloaded network but what is kept in the host's memory to the training device."""
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not is_kept(name):
            tensor.data = tensor.data.to(device)


def give_back(network: nn.Module) -> None:
    """Ordinary layers again, of the rounded weights."""
    dtype = compute_dtype(network)
    for module in list(network.modules()):
        if not isinstance(module, LAYERS):
            continue
        kept: Any = module.weight
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        elif private.is_wrapper(kept.data):
            kept = kept.dequantize()
        else:
            continue
        module.weight = nn.Parameter(kept.detach().to(dtype), requires_grad=False)


def _is_stored(network: nn.Module) -> bool:
    return any(p.dtype == FP8 or private.is_wrapper(p.data) for p in network.parameters())


def _skipped(network: Any) -> re.Pattern[str]:
    """Names of the layers that diffusers' layerwise casting leaves as they are."""
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    return re.compile("|".join([*DEFAULT_SKIP_MODULES_PATTERN, *private.exact_layers(network)]))
