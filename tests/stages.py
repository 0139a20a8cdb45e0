"""What each stage of a run is seen to hold on the CPU: distinct tensors counted, and what torch's profiler saw come."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfnpo_core.models.backbone import MovingBackbone
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training.accelerators import AMP, make_accelerator
from selfnpo_core.training.checkpoint import save_checkpoint
from selfnpo_core.training.engine import Engine
from selfnpo_core.training.measuring import Noise, _held, measure
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.samples import SamplePlan


def distinct(networks: Iterable[nn.Module]) -> int:
    tensors: list[Tensor] = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def seen(make: Callable[[], Any], recipe: Recipe, prompts: Sequence[str], folder: Path) -> dict[str, int]:
    """Bytes by stage, for the stages that the recipe has."""
    backbone, accelerator, found = make(), make_accelerator(recipe), {}
    found["encode prompts"] = _encoding(backbone, prompts)
    amp = AMP[recipe.mixed_precision]
    samples = None
    if recipe.rollout == "samples":
        plan = SamplePlan.of(backbone, recipe, len(prompts))
        samples, count = Noise(plan), min(plan.count, plan.part_rows)
        texts, seeds = [prompts[i % len(prompts)] for i in range(count)], list(range(count))
        with torch.autocast("cpu", dtype=amp, enabled=amp is not None):
            peak = peak_tensor_bytes(
                lambda: backbone.draw_latents(texts, seeds, guidance_scale=plan.guidance_scale, steps=2)
            )
        found["draw finished samples"] = distinct([backbone.denoiser]) + peak
    engine = Engine(backbone, recipe, len(prompts), accelerator, samples)
    try:
        if recipe.rollout == "pool":
            found["warm the pool up"] = _held(engine) + peak_tensor_bytes(engine.warm_up)
        next(engine.updates())
        found["draw sample grids"] = _held(engine) + peak_tensor_bytes(lambda: _grid(engine, prompts))
        found["save"] = _held(engine) + peak_tensor_bytes(lambda: _save(engine, folder))
    finally:
        engine.close()
    found["update"] = measure(make(), recipe, prompts).bytes
    return found


def _encoding(backbone: Any, prompts: Sequence[str]) -> int:
    """While the last text is encoded. An encoder's weights may be the file's own pages, which no allocator counts."""
    called: dict[int, tuple[Any, Any, Any]] = {}
    rest, call = getattr(backbone, "_rest", None), nn.Module.__call__

    def remembered(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        is_within = any(module in other.modules() for other, _, _ in called.values())
        if isinstance(module, PreTrainedModel) and not is_within:
            called[id(module)] = module, args, kwargs
        return call(module, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__call__", remembered)
        backbone.embed(prompts)
    encoders = [module for module, _, _ in called.values()]
    vae = [] if rest is None else [rest.vae]
    work = [peak_tensor_bytes(lambda m=m, a=a, k=k: m(*a, **k)) for m, a, k in called.values()]
    return distinct([backbone.denoiser, *vae, *encoders]) + max(work)


def _grid(engine: Engine, prompts: Sequence[str]) -> None:
    backbone: Any = engine.backbone
    draw = backbone.draw_clips if isinstance(backbone, MovingBackbone) else backbone.draw_samples
    shown = list(prompts[:4])
    with engine.student.role("base"):
        negative = engine.student.negative()
        draw(shown, list(range(len(shown))), guidance_scale=5.0, steps=2, negative=negative)


def _save(engine: Engine, folder: Path) -> None:
    save_checkpoint(folder, engine.state())
    with engine.student.saving(folder, engine.ranks) as saver:
        saver.write(folder)
