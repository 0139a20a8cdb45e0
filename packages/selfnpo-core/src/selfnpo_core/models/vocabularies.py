"""Tokenizers beside the text encoders that they are for. The libraries load a tokenizer without its files as an empty
one, to which all prompts are the same."""

import json
from collections.abc import Mapping
from typing import Any

from selfnpo_core.errors import InputError

_LEAST = 32
"""A tokenizer knows as many words as its encoder has embeddings, but for padding: at least one in so many."""
_UNLIMITED = 1 << 30


def check_tokenizer(tokenizer: Any, encoder: Mapping[str, Any], place: str, name: str) -> None:
    """Raise `InputError` unless a tokenizer's vocabulary is there and fits. encoder: its config.json.

    place: the tokenizer's component or folder; name: of the model; both for messages.
    """
    words = _words(tokenizer)
    size = _number(encoder, "vocab_size", 49408 if "CLIP" in type(tokenizer).__name__ else 32128)
    files = " or ".join(dict.fromkeys(str(file) for file in getattr(type(tokenizer), "vocab_files_names", {}).values()))
    again = "get the whole model again"
    if len(words) * _LEAST < size:
        raise InputError(
            f"model {name} lacks the vocabulary of its {place}, which knows {len(words)} words of {size} "
            f"({files} is missing or empty): {again}"
        )
    if max(words.values()) >= size:
        raise InputError(
            f"model {name} has in {place} a tokenizer of another model ({max(words.values()) + 1} words, its text "
            f"encoder has {size}): {again}"
        )
    if _lacks_merges(tokenizer, words):
        raise InputError(
            f"model {name} lacks the merges of its {place} (merges.txt), so that every letter is a word: {again}"
        )
    if tokenizer.pad_token_id is None:
        raise InputError(f"model {name} has in {place} a tokenizer without a padding token: {again}")


def limit_length(tokenizer: Any, encoder: Mapping[str, Any] | None = None) -> None:
    """Give a tokenizer that does not say how many tokens it cuts at the encoder's positions, or none.

    encoder: config.json of one that has a fixed number of positions (CLIP).
    """
    most = _UNLIMITED if encoder is None else _number(encoder, "max_position_embeddings", 77)
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, int | float) or not 0 < length <= most:
        tokenizer.model_max_length = most
    else:
        tokenizer.model_max_length = int(length)


def _words(tokenizer: Any) -> dict[str, int]:
    """Word → id, without those that were added and that no text has."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return {word: i for word, i in tokenizer.get_vocab().items() if word not in added and "<extra_id_" not in word}


def _lacks_merges(tokenizer: Any, words: Mapping[str, int]) -> bool:
    if type(tokenizer.backend_tokenizer.model).__name__ != "BPE":
        return False
    if not any(len(word.removesuffix("</w>")) > 1 for word in words):
        return False
    return not json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges")


def _number(config: Mapping[str, Any], key: str, usual: int) -> int:
    """Of an encoder's configuration, or of the text's part in one of a whole CLIP."""
    inner = config.get("text_config")
    for some in (config, inner if isinstance(inner, Mapping) else {}):
        if isinstance(value := some.get(key), int) and not isinstance(value, bool) and value > 0:
            return value
    return usual
