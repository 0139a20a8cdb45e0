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
    import numpy as np
    import torch

    from selfnpo_core.experiments.measure import compare_prompts
    from selfnpo_image.demo.pictures import Things

    def pixels(picture: "Image") -> torch.Tensor:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)

    return compare_prompts(Things(), prompts, [pixels(p) for p in without], [pixels(p) for p in with_npo])
