"""What all that is put on a denoiser shares: whose forward it is, whose attribute, and how it comes off again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from selfnpo_core.errors import InputError
from selfnpo_core.system.private import HOOKED_FORWARD, compiler_is_loaded, uncompiled


def batch_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Rows of a denoiser's forward, from its arguments: of its sample, a tensor or a list of a tensor a row."""
    return len(_sample(args, kwargs))


def sample_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The noisy sample among the arguments of a denoiser's forward that takes it as one tensor."""
    sample = _sample(args, kwargs)
    assert isinstance(sample, Tensor), "a denoiser that takes a list is asked for no sample"
    return sample


def _sample(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | list[Tensor]:
    """It comes first, or by one of two names."""
    sample: Tensor | list[Tensor] = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
    assert isinstance(sample, Tensor | list), "every denoiser in the table takes its sample as a tensor or a list"
    return sample


def strength(value: float, name: str) -> float:
    """A finite number, or an error that names what it is of."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}: give a finite number")
    return float(value)


def replace(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an instance attribute, perhaps over a method of its class, until `undo` closes."""
    own = vars(owner)
    if name in own:
        undo.callback(own.__setitem__, name, own[name])
    else:
        undo.callback(own.pop, name)
    own[name] = value


def forward_of(module: nn.Module) -> Any:
    """The module's forward, inside of what accelerate's hooks (model offload) put around it."""
    return vars(module).get(HOOKED_FORWARD) or module.forward


def replace_forward(undo: ExitStack, module: nn.Module, value: Any) -> None:
    """Put `value` in the place of `forward_of(module)` until `undo` closes.

    accelerate's hooks keep the forward that they wrap at `HOOKED_FORWARD`, and hand it on when they are taken off and
    put on again, as diffusers does after every call of a pipeline that offloads. There the replacement outlives them.
    """
    inner = forward_of(module)
    vars(module)[HOOKED_FORWARD if HOOKED_FORWARD in vars(module) else "forward"] = value

    def restore() -> None:
        for name in (HOOKED_FORWARD, "forward"):
            if vars(module).get(name) is value:
                if name == "forward" and getattr(inner, "__func__", None) is type(module).forward:
                    del vars(module)[name]
                else:
                    vars(module)[name] = inner

    undo.callback(restore)


def runs(module: nn.Module, forward: Any) -> bool:
    """Whether `forward` is what the module runs, perhaps within others that tell what is `inside` of them."""
    outer = forward_of(module)
    while outer is not forward and hasattr(outer, "inside"):
        outer = outer.inside
    return outer is forward


def check_not_fused(denoiser: nn.Module) -> None:
    """Fused projections hold a copy of the weights, which neither a LoRA nor an offset would reach."""
    for name, module in denoiser.named_modules():
        # `Attention` keeps the flag when it is unfused: there the processor tells.
        if getattr(module, "fused_projections", False) and (
            not isinstance(module, Attention) or type(module.processor).__name__.startswith("Fused")
        ):
            raise InputError(f"{name} has fused projections, which pass by the LoRA: unfuse_qkv_projections() first")


def bare(denoiser: nn.Module) -> nn.Module:
    """The network inside of what `torch.compile` made of it."""
    return uncompiled(denoiser)


def forget_compiled_graphs() -> None:
    """Compiled graphs do not see hooks that come or go after they were made: have them made anew.

    It is asked of every graph of the process, since a compiled denoiser is not distinguishable from one within a
    compiled function. Where nothing was compiled it costs nothing.
    """
    if compiler_is_loaded():
        torch.compiler.reset()
