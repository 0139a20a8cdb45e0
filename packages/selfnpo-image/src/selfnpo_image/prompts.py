"""Prompts to train and sample with: a file's, or the built-in list."""

from __future__ import annotations

from importlib.resources import files

from selfnpo_core.cli import read_prompts


def load_prompts(source: str, model: str) -> list[str]:
    """`builtin` is the family's list, and for the demo model captions of its own world; else a file, one a line."""
    if source != "builtin":
        return read_prompts(source)
    if model == "demo":
        from selfnpo_image.demo.world import training_captions

        return training_captions()
    text = (files("selfnpo_image") / "prompts.txt").read_text(encoding="utf-8")
    return text.splitlines()
