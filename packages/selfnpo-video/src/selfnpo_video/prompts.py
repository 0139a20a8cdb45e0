"""Prompts to train and sample with: a file's, or the built-in list."""

from importlib.resources import files

from selfnpo_core.prompts import read_prompts


def load_prompts(name: str, model: str) -> list[str]:
    """`builtin` is the family's list; anything else is a file."""
    return builtin_prompts() if name == "builtin" else read_prompts(name)


def builtin_prompts() -> list[str]:
    """Scenes with movement in them, as users of video models write them: subject, action, place, light, camera."""
    return (files("selfnpo_video") / "prompts.txt").read_text(encoding="utf-8").splitlines()
