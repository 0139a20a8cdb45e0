"""What a recipe is seen to cost on this machine: memory and time of its updates, beside the estimate of `dry_run`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfnpo_core.models.backbone import Backbone
from selfnpo_core.system import private
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training.accelerators import AMP, make_accelerator
from selfnpo_core.training.engine import Engine
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.samples import SamplePlan


@dataclass(frozen=True, kw_only=True)
class Cost:
    """bytes: the most held at once on the training device, pool and prompts' embeddings in host memory left out.
    seconds: of the fastest update; on a CPU of its processors' time, which other programs do not lengthen."""

    bytes: int
    seconds: float


def measure(backbone: Backbone, recipe: Recipe, prompts: Sequence[str], updates: int = 3) -> Cost:
    """Train for a few updates, of which the first is not looked at, and put nothing on the disk.

    Finished samples are not drawn: an update costs the same on noise.
    """
    accelerator = make_accelerator(recipe)
    backbone.use_attention(recipe.attention, AMP[recipe.mixed_precision])
    backbone.embed(list(prompts))
    samples = Noise(SamplePlan.of(backbone, recipe, len(prompts))) if recipe.rollout == "samples" else None
    engine = Engine(backbone, recipe, len(prompts), accelerator, samples)
    try:
        engine.warm_up()
        made = engine.updates()
        next(made)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)
            seconds = min(next(made).seconds for _ in range(updates))
            return Cost(bytes=torch.cuda.max_memory_allocated(accelerator.device), seconds=seconds)
        held = _held(engine)
        peak = peak_tensor_bytes(lambda: next(made), grad=True)
        seconds = min(_processor_seconds(lambda: next(made)) for _ in range(updates))  # without the profiler
        return Cost(bytes=held + peak, seconds=seconds)
    finally:
        engine.close()


class Noise:
    """In the place of finished samples."""

    def __init__(self, plan: SamplePlan):
        self.plan = plan

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return torch.randn((len(rows), *self.plan.shape)), self.plan.prompts()[rows]


def _processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _held(engine: Engine) -> int:
    """Bytes of what lies in memory between two updates of one process on the CPU."""
    tensors: list[Tensor] = []
    for role in ("student", "teacher", "base"):
        with engine.student.role(role):
            network = engine.backbone.denoiser
        tensors += [*network.parameters(), *network.buffers()]
    tensors += [weight.grad for weight in engine.student.parameters.values() if weight.grad is not None]
    optimizer, _ = engine.steps.state()
    tensors += optimizer.one_by_one(list(optimizer))
    if engine.recipe.pool_device == "device":
        tensors += engine.source.state_dict().values()
    plain = (part for tensor in tensors for part in _plain(tensor))
    storages = (part.untyped_storage() for part in plain)
    return sum({private.storage_key(storage): storage.nbytes() for storage in storages}.values())


def _plain(tensor: Tensor) -> list[Tensor]:
    """The tensors that a quantised one is made of, or it itself."""
    if not private.is_wrapper(tensor.data):
        return [tensor]
    return [part for inner in private.wrapped_tensors(tensor.data) for part in _plain(inner)]
