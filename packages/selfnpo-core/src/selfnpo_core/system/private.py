"""What other libraries keep to themselves and this package cannot do without, one small function a name.

Each says whose the name is and why there is no public way. Only `ema`, which lies below, has one of its own (torch's
`_foreach_lerp_`). The tests of this module ask each of a real object, so that a release that renames one fails there,
by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, is_fake
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from diffusers.guiders.guider_utils import BaseGuidance
    from peft.tuners.lora import LoraLayer
    from torch.profiler import profile

# torch

SeesOperations = TorchDispatchMode
"""Base of a mode that every operation passes through. torch documents it, in a module with a private name."""


def fake_tensors() -> FakeTensorMode:
    """A mode in which operations answer with shapes and types alone. torch has it in the open for its compiler only."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of operations, by operation: (*args, **kwargs, out_val=result) → count.

    torch's counter has them, without the attention that the CPU has, and holds on to tensors, which a memory estimate
    must not.
    """
    from torch.utils.flop_counter import flop_registry

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, out_val: Any, **kwargs: Any) -> int:
        batch, heads, asking, width = query.shape
        return 2 * batch * heads * asking * key.shape[2] * (width + value.shape[3])

    return {**flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}


def backward_within_modes(loss: Tensor) -> None:
    """The backward pass of a scalar within the function modes that are on, in which checkpointing calculates anew.

    torch's own two ways to it are functions that such modes see, and it leaves a mode while that sees a function.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    once = {"allow_unreachable": True, "accumulate_grad": True}
    engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), **once)


def is_fake_tensor(tensor: Tensor) -> bool:
    """Whether `fake_tensors` made it: the device that it names is not where it is."""
    return bool(is_fake(tensor))


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Those in nested lists, tuples and mappings. torch's walk through them is public in C++ only."""
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor is made of others, as quantised ones are; torch's protocol of them has no public test."""
    return bool(is_traceable_wrapper_subclass(tensor))


def wrapped_tensors(tensor: Tensor) -> list[Tensor]:
    """What a tensor that `is_wrapper` is made of, by the one method that all of them have."""
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [getattr(tensor, name) for name in names]


def storage_key(storage: torch.UntypedStorage) -> int:
    """Tells storages apart, also those without memory, whose `data_ptr()` is 0."""
    return int(storage._cdata)


def weight_tables(module: nn.Module) -> tuple[MutableMapping[str, Any], MutableMapping[str, Any]]:
    """A module's own parameters and buffers, to be exchanged as they are; setting attributes registers them anew."""
    return module._parameters, module._buffers


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside of what `torch.compile` made of it, which has no other name for it; else the module."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


def compiler_is_loaded() -> bool:
    """Whether anything can have been compiled yet; `torch.compiler` loads the compiler when it is asked."""
    return "torch._dynamo" in sys.modules


def compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    """What `module.compile()` has its calls go to; torch shows neither this nor whether it was called."""
    call: Callable[..., Any] | None = getattr(module, "_compiled_call_impl", None)
    return call


def set_compiled_call(module: nn.Module, call: Callable[..., Any] | None) -> None:
    """See `compiled_call`."""
    module._compiled_call_impl = call


def default_store() -> Any:
    """Where the processes of a run found one another. torch hands on a store only to who made it, not what it made."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def leave_out_of_ddp(network: nn.Module, names: Sequence[str]) -> None:
    """Parameters and buffers that DDP is neither to send around nor to reduce. It reads them off the network only."""
    network._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]


def memory_changes(measured: profile) -> list[tuple[int, int]]:
    """(nanosecond, bytes) of each allocation and release; the profiler's public tables hold sums only."""
    assert measured.profiler is not None
    results: Any = measured.profiler.kineto_results  # torch's own stub leaves `nbytes` out
    return sorted(
        ((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"),
        key=lambda change: change[0],
    )


# Accelerate


def forget_accelerator(*, processes: bool) -> None:
    """Have the next `Accelerator` made anew. Its state outlives it, and its own `free_memory` leaves it there.

    processes: what it knows of other processes too.
    """
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=processes)
    GradientState._reset_state()


HOOKED_FORWARD = "_old_forward"
"""Where a module that Accelerate's hooks (model offload) are on keeps its own forward; their API only adds and removes
them."""


# PEFT


def active_adapter(layer: LoraLayer) -> str | list[str]:
    """As the layer keeps it, to be put back as it was; `active_adapters` makes a list of it."""
    kept: str | list[str] = layer._active_adapter
    return kept


def set_active_adapter(layer: LoraLayer, adapter: str | list[str]) -> None:
    """PEFT's `set_adapter` sets `requires_grad` of all adapters besides, which is not wanted while others train."""
    layer._active_adapter = adapter


# diffusers


def block_facts(kind: type[nn.Module]) -> Any:
    """What a transformer block takes and returns, `ValueError` for an unknown one; the table is in a private module."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    return TransformerBlockRegistry.get(kind)


def float32_parts(kind: Any) -> tuple[str, ...]:
    """Names of the layers that transformers reads in float32 where a model of this class is read in float16."""
    return tuple(getattr(kind, "_keep_in_fp32_modules", None) or ())


def float32_layers(network: nn.Module) -> tuple[str, ...]:
    """Parts of names of the layers that diffusers loads in float32 whatever the type of the rest is; a network only
    keeps them. Also of one inside of others (DDP's, a compiler's)."""
    kept = (getattr(type(module), "_keep_in_fp32_modules", None) for module in network.modules())
    return tuple(next((names for names in kept if names), ()))


def exact_layers(network: Any) -> list[str]:
    """Patterns of names of layers that diffusers' layerwise casting leaves as they are; a network only keeps them."""
    own = (network._keep_in_fp32_modules, network._skip_layerwise_casting_patterns)
    return [text for some in own for text in some or ()]


def prepared_branches(guider: BaseGuidance) -> int:
    """How many branches of a step a guider has prepared the denoiser for; it counts them for itself only."""
    return int(guider._count_prepared)


def execution_device(pipe: Any) -> torch.device | None:
    """Where a pipeline calculates, also while its parts wait elsewhere; `device` says where they wait."""
    return getattr(pipe, "_execution_device", None)


def position_table(embed: Any, height: int, width: int, frames: int, device: torch.device) -> Tensor:
    """Positions that a patch embedding adds to a clip of this size, text included; it makes them in its forward."""
    positions: Tensor = embed._get_positional_embeddings(height, width, frames, device=device)
    return positions


# DeepSpeed: of parameters under ZeRO-3


def is_cut(tensor: Tensor) -> bool:
    """Whether ZeRO-3 holds it in pieces; DeepSpeed marks such parameters by an id, and has no test of it."""
    return hasattr(tensor, "ds_id")


def is_gathered(tensor: Any) -> bool:
    """Whether all of a cut parameter is there at the moment; the public context managers only bring that about."""
    return bool(tensor.ds_status.name == "AVAILABLE")


def piece_of(tensor: Any) -> Tensor:
    """This rank's piece, flat and padded, which may be exchanged; the public functions copy out of it and into it."""
    piece: Tensor = tensor.ds_tensor
    return piece


def cut_too(cut: Any, parameter: nn.Parameter) -> None:
    """Cut another parameter as one that is cut; the public way takes whole modules, and all of their parameters."""
    cut.convert_to_zero_parameters(param_list=[parameter])


def whole_shape(tensor: Any) -> torch.Size:
    """While it is cut, `shape` is that of nothing."""
    shape: torch.Size = tensor.ds_shape
    return shape


def let_go(tensors: Sequence[Any]) -> None:
    """Cut gathered parameters again, which have not changed; the public context does so for those it gathered alone."""
    tensors[0].partition(param_list=list(tensors), has_been_updated=False)


# DeepSpeed: of ZeRO's optimizers


def flat_partitions(optimizer: Any) -> list[Tensor]:
    """The float32 pieces that the inner optimizer sees, padding included, in stages 1 and 2, or 3. Checkpoints of
    DeepSpeed's own, which hold as many files as there are ranks, are the public way."""
    found = getattr(optimizer, "single_partition_of_fp32_groups", None)
    return list(optimizer.fp32_partitioned_groups_flat if found is None else found)


def inner_state(optimizer: Any) -> MutableMapping[Any, dict[str, Any]]:
    """The state of the torch optimizer inside, by flat partition."""
    state: MutableMapping[Any, dict[str, Any]] = optimizer.optimizer.state
    return state


def link_states(optimizer: Any) -> None:
    """Have stages 1 and 2 know of a state that was put into the inner optimizer; they look for one at a step only."""
    link = getattr(optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        optimizer._hp_optimizer_states_linked = False
        link()


def overflowed(optimizer: Any) -> bool:
    """Whether the last step was left out as a gradient was not finite; stage 3 does not look."""
    return bool(getattr(optimizer, "overflow", False))


def leave_out_helpers(names: Iterable[str]) -> None:
    """Have DeepSpeed do without these C++ helpers, which it compiles at first use; its switches act at its install."""
    import deepspeed.ops

    for name in names:
        deepspeed.ops.__compatible_ops__[name] = False
