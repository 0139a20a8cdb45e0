"""Prompts to train and sample with: a file's, or the built-in list."""

from collections.abc import Collection
from importlib.resources import files

from selfnpo_core.models.prompts import read_prompts


def load_prompts(name: str, model: str, *, apart: Collection[str] = ()) -> list[str]:
    """`builtin` is the family's list, or for the demo model captions of its own world; anything else is a file.

    apart: as of `read_prompts`.
    """
    if name != "builtin":
        return read_prompts(name, apart=apart)
    if model == "demo":
        from selfnpo_video.demo.world import training_captions

        return training_captions()
    return builtin_prompts()


def builtin_prompts() -> list[str]:
    """Scenes with movement in them, as users of video models write them: subject, action, place, light, camera."""
    return (files("selfnpo_video") / "prompts.txt").read_text(encoding="utf-8").splitlines()
