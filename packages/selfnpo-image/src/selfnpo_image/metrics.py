"""Oracles: what can be measured of two arms of pictures drawn at the same prompts and seeds.

Only the demo model has one, since only its world has a truth to measure against.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

Oracle = Callable[[Sequence[str], "Sequence[Image]", "Sequence[Image]"], dict[str, Any]]
"""(prompts, pictures without, pictures with) → figures for `metrics.json`."""


def oracle_for(model: str) -> Oracle | None:
    """The oracle of a model by its user's name for it, or `None`."""
    return judge_demo if model == "demo" else None


def judge_demo(prompts: Sequence[str], without: "Sequence[Image]", with_npo: "Sequence[Image]") -> dict[str, Any]:
    """Prompt accuracy, win rate and, of enough pictures, FID, over the prompts that are the demo world's captions."""
    from selfnpo_core.worlds.measure import compare_arms
    from selfnpo_image.demo.shapes import Shapes

    labels, kept = _labels(prompts)
    if not kept:
        return {"judged": 0, "note": "no prompt is a caption of the demo's world"}
    return compare_arms(Shapes(), labels, _pixels(without, kept), _pixels(with_npo, kept))


def _labels(prompts: Sequence[str]) -> tuple[Any, list[int]]:
    """Labels (N, 7) of the prompts that the world knows, and their indices."""
    import torch

    from selfnpo_image.demo.world import parse_caption

    parsed = [parse_caption(text) for text in prompts]
    kept = [index for index, labels in enumerate(parsed) if labels is not None]
    return torch.tensor([parsed[index] for index in kept]), kept


def _pixels(pictures: "Sequence[Image]", kept: Sequence[int]) -> Any:
    """(N, 3, H, W) uint8."""
    import numpy as np
    import torch

    return torch.stack([torch.from_numpy(np.array(pictures[i].convert("RGB"))).permute(2, 0, 1) for i in kept])
