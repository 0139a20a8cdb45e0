"""How much of a prompt is read: text encoders and judges take a fixed number of tokens, and cut the rest."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger(__name__)


def cut_of(tokenizer: Any, limit: int, texts: Sequence[str]) -> int:
    """How many texts have more tokens than `limit`, those that begin and end a text included."""
    return sum(len(tokens) > limit for tokens in tokenizer(list(texts)).input_ids) if texts else 0


def say_what_is_cut(texts: Sequence[str], readers: Mapping[str, tuple[Any, int]]) -> None:
    """Warn of texts of which a text encoder will not see all. readers: encoder → its tokenizer and its tokens.

    Of several processes the first says so.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    found: dict[tuple[int, int], list[str]] = {}
    for name, (tokenizer, limit) in readers.items():
        if cut := cut_of(tokenizer, limit, texts):
            found.setdefault((cut, limit), []).append(name)
    for (cut, limit), names in found.items():
        who = f" ({', '.join(names)})" if len(names) < len(readers) else ""
        log.warning(
            "%d of %d prompts are longer than %d tokens%s: the rest of them is cut", cut, len(texts), limit, who
        )
