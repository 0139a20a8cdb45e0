"""Attention of CogVideoX: text and video tokens together, by torch's SDPA, by xformers, or by flash kernels only.

diffusers' own switch to xformers does nothing on CogVideoX, whose attention joins two streams of tokens and turns the
video's by rotary positions; hence a processor of ours. Every kernel takes q, k, v: (B, tokens, heads, dim).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfnpo_core.errors import InputError

log = logging.getLogger(__name__)
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
NAMES = ("auto", "sdpa", "xformers", "flash")


class JointAttention:
    """A CogVideoX attention processor on a kernel of choice; equal to diffusers' own but for rounding."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states: (B, video tokens, D), encoder_hidden_states: (B, text tokens, D) → the same shapes."""
        if attention_mask is not None:
            raise NotImplementedError("CogVideoX attends to all tokens: a mask is not supported")
        text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = (
            rearrange(to(tokens), "b n (heads d) -> b n heads d", heads=attn.heads)
            for to in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        if image_rotary_emb is not None:
            q, k = _turn(q, text, image_rotary_emb), _turn(k, text, image_rotary_emb)
        out = rearrange(self.kernel(q.to(v.dtype), k.to(v.dtype), v), "b n heads d -> b n (heads d)").to(tokens.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        return out[:, text:], out[:, :text]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's choice among its kernels."""
    q, k, v = (rearrange(x, "b n heads d -> b heads n d") for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n heads d")


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's flash kernel and no other: an error where it cannot run, rather than a slow one in silence."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(q, k, v)


def memory_efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """xformers' memory-efficient attention."""
    from xformers.ops import memory_efficient_attention

    out: Tensor = memory_efficient_attention(q.contiguous(), k.contiguous(), v.contiguous())
    return out


KERNELS: dict[str, Kernel] = {"xformers": memory_efficient, "flash": flash}


def use_attention(transformer: nn.Module, name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Put the processors of `name` on a CogVideoXTransformer3DModel; returns what was chosen, and logs why.

    xformers and flash are tried with a real call first: an installed package may lack kernels for this GPU or dtype.
    Where they cannot run, SDPA takes their place. Raises `InputError` for a name that does not exist.
    """
    chosen = choose(name, KERNELS, device, dtype, "cogvideox")
    processor = JointAttention(KERNELS[chosen]) if chosen in KERNELS else CogVideoXAttnProcessor2_0()
    transformer.set_attn_processor(processor)  # type: ignore[operator]
    return chosen


def choose(name: str, kernels: Mapping[str, Kernel], device: torch.device, dtype: torch.dtype, family: str) -> str:
    """What computes attention where `name` was asked for, which is logged. kernels: those that are tried first."""
    if name not in NAMES:
        raise InputError(f"attention '{name}' is unknown for {family}: use one of {', '.join(NAMES)}")
    chosen, why = name, "as asked"
    if name == "auto":
        chosen, why = "sdpa", "torch picks the fastest kernel that it has here"
    elif name in kernels and (problem := probe(kernels[name], device, dtype)):
        chosen, why = "sdpa", f"{name} cannot run here: {problem}"
    log.info("attention: %s (%s)", chosen, why)
    return chosen


def probe(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with a kernel on this device, tried with one small call; `None` if nothing is."""
    if device.type != "cuda":
        return f"it needs a CUDA GPU, and this is {device.type}"
    try:
        q = torch.zeros((1, 32, 1, 64), device=device, dtype=dtype)
        kernel(q, q, q)
        torch.cuda.synchronize(device)
    except Exception as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None


def _turn(x: Tensor, text: int, rotary: Any) -> Tensor:
    """Rotary positions on the video's tokens of x: (B, tokens, heads, dim)."""
    video = rearrange(x[:, text:], "b n heads d -> b heads n d")
    turned = rearrange(apply_rotary_emb(video, rotary), "b heads n d -> b n heads d")
    return torch.cat([x[:, :text], turned], dim=1)
