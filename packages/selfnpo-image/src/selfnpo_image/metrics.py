"""Oracles: what can be measured of two arms of pictures drawn at the same prompts and seeds.

Only the demo model has one, since only its world has a truth to measure against.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

Oracle = Callable[[Sequence[str], "Sequence[Image]", "Sequence[Image]"], dict[str, Any]]
"""(prompts, pictures without, pictures with) → figures for `metrics.json`."""

FID_PICTURES = 128
"""Below this many pictures a Fréchet distance of 64 features says nothing, so none is given."""


def oracle_for(model: str) -> Oracle | None:
    """The oracle of a model by its user's name for it, or `None`."""
    return judge_demo if model == "demo" else None


def judge_demo(prompts: Sequence[str], without: "Sequence[Image]", with_npo: "Sequence[Image]") -> dict[str, Any]:
    """Prompt accuracy, win rate and, of enough pictures, FID, over the prompts that are the demo world's captions."""
    from selfnpo_core.evaluation import win_rate
    from selfnpo_image.demo import measure

    labels, kept = _labels(prompts)
    if not kept:
        return {"judged": 0, "note": "no prompt is a caption of the demo's world"}
    arms = [measure.judge(_pixels(pictures, kept), labels) for pictures in (without, with_npo)]
    enough = len(kept) >= FID_PICTURES
    figures: dict[str, Any] = {"judged": len(kept)}
    for name, scores in zip(("without", "with"), arms, strict=True):
        described = measure.describe(scores) if enough else _accuracy(scores)
        figures[name] = {key: value for key, value in described.items() if key != "preference"}
    if enough:
        figures["change"] = measure.against(arms[1], arms[0])
    else:
        figures["change"] = {"win_rate": win_rate(arms[1].preference, arms[0].preference)}
    return figures


def _accuracy(scores: Any) -> dict[str, Any]:
    from selfnpo_core.evaluation import wilson

    return {"accuracy": wilson(scores.accurate.sum().item(), len(scores.accurate))}


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
