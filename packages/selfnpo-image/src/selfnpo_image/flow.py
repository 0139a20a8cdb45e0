"""What families of rectified-flow transformers share (2210.02747, 2403.03206)."""

from collections.abc import Mapping
from typing import Any

import torch

from selfnpo_core.errors import InputError
from selfnpo_image.backbone import ImageBackbone

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
JOINT_ATTENTION = [*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
"""Ends of layer names, of attention to pictures, and to pictures and texts with weights of their own."""


class FlowBackbone(ImageBackbone):
    """A model of such a family as the training engine sees it."""

    def use_attention(self, name: str, amp: torch.dtype | None = None) -> None:
        """Joint attention has torch's SDPA only."""
        if name not in ("auto", "sdpa"):
            raise InputError(f"attention '{name}' is unknown for {self.family}: use auto or sdpa")


def heads_width(config: Mapping[str, Any]) -> int | None:
    """Of a network, by its configuration: heads times their size."""
    heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
    return heads * size if isinstance(heads, int) and isinstance(size, int) else None


def shift_by_size(scheduler: Mapping[str, Any], patches: int, most: float) -> float | None:
    """mu as the stock pipelines have it, linear in the number of patches; `None` where the scheduler asks for none.

    most: at the largest number of patches, where the scheduler's configuration does not say.
    """
    if not scheduler.get("use_dynamic_shifting"):
        return None
    few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", most)
    return float(low + (patches - few) * (high - low) / (many - few))
