"""A denoiser made weaker for a while: attention that sees only itself, blocks that do nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from selfnpo_core.adapters.hooks import forward_of, replace_forward
from selfnpo_core.adapters.rules import Weaken
from selfnpo_core.errors import InputError
from selfnpo_core.system import private


def identity_attention(layers: Sequence[str]) -> Weaken:
    """In these self-attention layers the map of attention is the identity: what comes out is V (PAG, 2403.17377).

    Where text stands in front of the samples' own tokens (CogVideoX), it goes on attending to everything.
    """

    @contextmanager
    def weaken(denoiser: nn.Module) -> Iterator[None]:
        with ExitStack() as undo:
            for name in layers:
                layer = submodule(denoiser, name)
                if not isinstance(layer, Attention) or layer.is_cross_attention or layer.added_kv_proj_dim is not None:
                    raise InputError(f"'{name}' is no layer of self-attention that can be perturbed: name another")
                replace_forward(undo, layer, _identity(forward_of(layer), name))
            yield

    return weaken


def _identity(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **kwargs: Any) -> Any:
        mode = _Identity(0 if encoder_hidden_states is None else encoder_hidden_states.shape[1])
        with mode:
            output = run(hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs)
        if not mode.seen:
            raise InputError(f"the attention of '{name}' is not torch's own, and cannot be perturbed: use `native`")
        return output

    return forward


class _Identity(TorchFunctionMode):
    """Attention's result is V for the tokens after the first `text`. q, k, v: (B, heads, tokens, width)."""

    def __init__(self, text: int) -> None:
        super().__init__()
        self.text, self.seen = text, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.seen = True
        query, key, value = args[:3]
        if self.text == 0:
            return value
        words = func(query[:, :, : self.text], key, value, *args[3:], **kwargs)
        return torch.cat([words, value[:, :, self.text :]], dim=2)


def skipped_blocks(blocks: Mapping[str, Sequence[int]]) -> Weaken:
    """These transformer blocks hand on what they are given (SLG, from SD3.5's reference code).

    blocks: name of a stack of blocks → those of its blocks that are skipped. What a block takes and returns is known to
    diffusers.
    """

    @contextmanager
    def weaken(denoiser: nn.Module) -> Iterator[None]:
        with ExitStack() as undo:
            for stack, indices in blocks.items():
                for index in indices:
                    block = submodule(denoiser, f"{stack}.{index}")
                    replace_forward(undo, block, _skip(block, f"{stack}.{index}"))
            yield

    return weaken


def _skip(block: nn.Module, name: str) -> Callable[..., Any]:
    try:
        known = private.block_facts(type(block))
    except ValueError:
        raise InputError(f"'{name}' is no transformer block that can be skipped: name another") from None
    signature = inspect.signature(type(block).forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(block, *args, **kwargs).arguments
        hidden = given[known.hidden_states_argument_name]
        if known.return_encoder_hidden_states_index is None:
            return hidden
        text = given[known.encoder_hidden_states_argument_name]
        return (hidden, text) if known.return_hidden_states_index == 0 else (text, hidden)

    return forward


def submodule(denoiser: nn.Module, name: str) -> nn.Module:
    try:
        return denoiser.get_submodule(name)
    except AttributeError:
        raise InputError(f"the denoiser has no layer '{name}' to weaken: name one that it has") from None
