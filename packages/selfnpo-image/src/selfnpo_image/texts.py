"""Texts of any length as rows of one table: tokens (n, TOKENS, width), zeros past the end, and a mask (n, TOKENS)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from selfnpo_core.models.backbone import has_numbers

TOKENS = 512
"""That stock pipelines read of a prompt, at most."""


def padded(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of texts, of (length, width) each."""
    tokens = torch.stack([pad(text, (0, 0, 0, TOKENS - len(text))) for text in texts])
    mask = torch.stack([torch.arange(TOKENS, device=text.device) < len(text) for text in texts])
    return tokens, mask.to(tokens.dtype)


def cut(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows as a pipeline has them: tokens (n, longest, width) and a mask (n, longest) of booleans, or `None` for all.

    Those without numbers (`has_numbers`) stay as long as they may be.
    """
    if not has_numbers(mask):
        return tokens, None
    longest = int((mask > 0).sum(1).max())
    seen = mask[:, :longest] > 0
    return tokens[:, :longest], None if bool(seen.all()) else seen


def apart(tokens: Tensor, mask: Tensor) -> list[Tensor]:
    """Rows as a list of texts (length, width)."""
    lengths = (mask > 0).sum(1).tolist() if has_numbers(mask) else [TOKENS] * len(mask)
    return [text[:length] for text, length in zip(tokens, lengths, strict=True)]
