"""What a run will have to calculate, stage by stage, and how long that may take: an estimate, from FLOPs alone.

A forward is counted on shapes, by torch's formulas for products, convolutions and attention. A backward pass counts as
two forwards, under a LoRA, whose base has no gradients of weights, as one; with gradient checkpointing a forward more.
Not in it: embedding prompts, sample grids, traffic between processes, loading and saving.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.models.backbone import Backbone, WindowedBackbone
from selfnpo_core.system import private
from selfnpo_core.system.durations import duration
from selfnpo_core.training.accelerators import AMP
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.samples import SamplePlan
from selfnpo_core.training.simulation import replaced
from selfnpo_core.training.updates import reference_rows, teacher_rows

CARDS: Mapping[str, tuple[float, float]] = {
    "H200": (67, 989),
    "H100": (67, 989),
    "A100": (19.5, 312),
    "L40S": (91.6, 362),
    "A6000": (38.7, 155),
    "RTX 4090": (82.6, 165),
    "RTX 3090": (35.6, 71),
    "V100": (15.7, 125),
    "T4": (8.1, 65),
}
"""TFLOP/s by the makers' data sheets: float32 without TF32, and 16 bits with sums in float32, without sparsity."""
ASSUMED = "A100"
REACHED = 0.5
"""Share of these that large products and attention reach."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of all processes together, by stage. rate: FLOP/s of one card, as its maker says."""

    stages: Mapping[str, float]
    processes: int
    card: str
    rate: float

    def seconds(self, flops: float) -> float:
        return flops / (self.processes * self.rate * REACHED)

    def __str__(self) -> str:
        each = [f"{name} {flops:.2g}" for name, flops in self.stages.items()]
        times = [f"{name} {duration(self.seconds(flops))}" for name, flops in self.stages.items()]
        whole = sum(self.stages.values())
        cards = f"{self.processes} × {self.card} at {REACHED:.0%} of {self.rate / 1e12:g} TFLOP/s"
        return "\n".join(
            (
                f"FLOPs, counted       {whole:.2g}: {', '.join(each)}",
                f"time, an estimate    {duration(self.seconds(whole))}: {', '.join(times)}",
                f"                     from FLOPs alone, on {cards}",
            )
        )


class CountedFlops(private.SeesOperations):
    """Adds up the FLOPs of what is calculated within it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._formulas = private.flop_formulas()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := self._formulas.get(func.overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def work_of(backbone: Backbone, recipe: Recipe, prompts: Sequence[str], processes: int = 1) -> Work:
    """What the recipe's run will calculate. The backbone may be on the meta device, and is left as it was."""
    grid = backbone.schedule.grid(recipe.grid_steps)
    first = 0 if recipe.pool_target == "endpoint" else backbone.schedule.first_trained(grid)
    backbone.embed(list(prompts[:1]))
    whole = forward_flops(backbone, recipe)
    part = whole if recipe.chunk_frames is None else forward_flops(backbone, recipe, recipe.chunk_frames)
    rows = recipe.steps * recipe.update_rows * processes
    student = 2 + (recipe.train == "full") + recipe.gradient_checkpointing
    updates = rows * (teacher_rows(recipe, first) * whole + (reference_rows(recipe) + student) * part)
    if recipe.rollout == "samples":
        plan = SamplePlan.of(backbone, recipe, len(prompts), processes=processes)
        stages = {"drawing": plan.count * recipe.rounds * plan.forwards * whole, "updates": updates}
    elif recipe.rollout == "pool":
        step = 1 if recipe.step_guidance in (0, -1) else 2
        at_first = recipe.first_trajectories(processes)
        walks = (first + recipe.grid_steps - 1) / 2 * step * whole
        ends = recipe.grid_steps * step * whole if recipe.pool_target == "endpoint" else 0.0
        stages = {
            "warming the pool up": at_first * (walks + ends),
            "updates": updates + (recipe.pool_size - at_first) * walks,
        }
    else:
        stages = {"updates": updates}
    card, rate = _card(recipe)
    return Work(stages=stages, processes=processes, card=card, rate=rate)


def forward_flops(backbone: Backbone, recipe: Recipe, window: int | None = None) -> int:
    """Of one row, without gradient; of a window of so many latent frames if it is given."""
    t = float(backbone.schedule.grid(recipe.grid_steps)[0])
    base, amp = backbone.denoiser, AMP[recipe.mixed_precision]
    with (
        private.fake_tensors(),
        replaced([base], _empty),
        CountedFlops() as flops,
        torch.no_grad(),
        torch.autocast("cpu", dtype=amp, enabled=amp is not None),
    ):
        shape = backbone.latent_shape if window is None else (window, *backbone.latent_shape[1:])
        x, at, prompt = torch.empty((1, *shape)), torch.full((1,), t), torch.zeros(1, dtype=torch.long)
        if window is None:
            backbone.predict(x, at, prompt)
        else:
            assert isinstance(backbone, WindowedBackbone)
            backbone.predict_window(x, at, prompt, first=0)
    return flops.total


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu")


def _card(recipe: Recipe) -> tuple[str, float]:
    """The GPU that is here, if its rate is known, else the assumed one; and FLOP/s in the recipe's precision."""
    here = torch.cuda.get_device_name() if torch.cuda.is_available() and recipe.device != "cpu" else ""
    name = next((name for name in CARDS if name in here), ASSUMED)
    return name, 1e12 * CARDS[name][recipe.mixed_precision != "no"]
