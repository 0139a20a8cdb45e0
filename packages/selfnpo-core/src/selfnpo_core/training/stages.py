"""What a run holds on its training device, stage by stage: the largest decides whether it fits.

    encode prompts   text encoders, one text at a time; on a GPU the network is not there yet
    draw samples     the whole base as it was loaded, and a batch's forward; with `rounds`, beside what is trained
    warm up          what is trained, without the optimizer's state, the base, asked for its spread at first, and a
                     batch's forward of the teacher
    update           all of that, a batch's activations and its gradients
    sample grids     what lies there between two updates, and the larger of drawing and decoding
    save             the same, and what is copied on the way to the disk

A stage is a function of a `Planned`, `None` where a run does not have it; `STAGES` is their table. Forwards are
simulated on shapes; text encoders and decoders are the family's to tell (`StagedBackbone`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from selfnpo_core.models.backbone import Aside, Backbone, StagedBackbone
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.samples import SamplePlan
from selfnpo_core.training.simulation import simulated_draw, simulated_step
from selfnpo_core.training.streaming import WRITTEN_AT_ONCE
from selfnpo_core.training.student import Student

NOTHING = Aside(weights=0, work=0)
BASE = "base weights"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the memory, on the training device or in the host's."""

    name: str
    bytes: int
    on_device: bool = True


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A time of the run, and what is held then."""

    name: str
    parts: tuple[Part, ...]

    @property
    def device_bytes(self) -> int:
        return sum(part.bytes for part in self.parts if part.on_device)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What stages are told of a run, one of whose `processes` this is; networks lie on the meta device.

    base: bytes of the base as it was loaded. network: of the module that is moved where the family moves its denoiser.
    held: weights, optimizer and gradients from the first update to the last. rest: embeddings and pool. update: what
    comes and goes with an update.
    """

    backbone: Backbone
    student: Student
    recipe: Recipe
    num_prompts: int
    processes: int
    on_gpu: bool
    base: int
    network: int
    held: tuple[Part, ...]
    rest: tuple[Part, ...]
    update: tuple[Part, ...]

    @property
    def _sides(self) -> StagedBackbone | None:
        return self.backbone if isinstance(self.backbone, StagedBackbone) else None

    @property
    def encoding(self) -> Aside | None:
        return None if self._sides is None else self._sides.encoding(self.on_gpu)

    @property
    def decoding(self) -> Aside:
        return NOTHING if self._sides is None else self._sides.decoding(self.on_gpu)

    @property
    def decodes_apart(self) -> bool:
        """Whether the denoiser leaves a GPU before a sample grid is decoded."""
        return self.on_gpu and self._sides is not None and self._sides.decodes_apart

    def drawn_at_once(self, count: int) -> int:
        return count if self._sides is None else min(count, self._sides.drawn_at_once)

    @property
    def called_in(self) -> tuple[Part, ...]:
        """The base, where it waits in the host's memory and is on the device only while it answers."""
        waits = any(part.name == BASE and not part.on_device for part in self.held)
        return (Part(name=BASE, bytes=self.base),) if waits else ()

    @property
    def before_updates(self) -> tuple[Part, ...]:
        """Of what is held, what there is before the first: torch makes an optimizer's state in its first step."""
        late = () if self.recipe.engine.startswith("zero") else ("optimizer", "gradients")
        return tuple(part for part in self.held if not part.name.startswith(late))


def encode(run: Planned) -> Stage | None:
    """One process a node reads the encoders, if the cache has not all texts."""
    aside = run.encoding
    if aside is None:
        return None
    own = () if run.on_gpu else (Part(name=BASE, bytes=run.base),)
    parts = (*own, Part(name="text encoders", bytes=aside.weights), Part(name="one text", bytes=aside.work))
    return Stage(name="encode prompts", parts=parts)


def draw(run: Planned) -> Stage | None:
    if run.recipe.rollout != "samples":
        return None
    first = (Part(name=BASE, bytes=run.base), *run.rest)
    late = _drawing_parts(run, (*run.held, *run.called_in, *run.rest), adapters=True) if run.recipe.rounds > 1 else ()
    parts = max((_drawing_parts(run, first, adapters=False), late), key=_on_device)
    return Stage(name="draw finished samples", parts=parts)


def warm_up(run: Planned) -> Stage | None:
    if run.recipe.rollout != "pool":
        return None
    peak = simulated_step(run.backbone, run.student, run.recipe, on_gpu=run.on_gpu)
    forward = Part(name=f"a forward of {run.recipe.batch_size} rows (simulated)", bytes=peak)
    return Stage(name="warm the pool up", parts=(*run.before_updates, *run.called_in, *run.rest, forward))


def update(run: Planned) -> Stage:
    return Stage(name="update", parts=(*run.held, *run.rest, *run.update))


def grids(run: Planned) -> Stage | None:
    """Of both columns the one with negative weights, of which full ones are a second copy of the base."""
    recipe, decoding = run.recipe, run.decoding
    if not recipe.sample_every or recipe.engine in ("zero3", "fsdp2"):
        return None
    held = (*run.held, *run.called_in, *run.rest)
    negative = (Part(name="negative weights", bytes=run.base),) if recipe.train == "full" else ()
    vae = Part(name="VAE", bytes=decoding.weights)
    prompts = len(recipe.sample_prompts) or min(4, run.num_prompts)
    rows = run.drawn_at_once(-(-prompts // run.processes)) * _branches(max(recipe.sample_guidance_scales))
    peak = simulated_draw(run.backbone, run.student, recipe, rows, on_gpu=run.on_gpu)
    forward = Part(name=f"a forward of {rows} rows (simulated)", bytes=peak)
    decode = Part(name="decoding one sample", bytes=decoding.work)
    if run.decodes_apart:
        gone = Part(name="the denoiser, which waits in the host's memory", bytes=-run.network)
        moments = (*held, *negative, forward), (*held, gone, vae, decode)
    else:
        moments = (*held, *negative, vae, forward), (*held, vae, decode)
    return Stage(name="draw sample grids", parts=max(moments, key=_on_device))


def save(run: Planned) -> Stage:
    """Weights are copied to the host's memory and written there one by one, each while the next is copied."""
    recipe, largest = run.recipe, max(weight.numel() for weight in run.student.parameters.values())
    full, split = recipe.train == "full", recipe.engine in ("zero3", "fsdp2")
    at_once = (10 if full else 0) + (4 if split else 0)  # a difference in float32, its copy in 16 bits, the base's
    parts = (
        *run.held,
        *run.rest,
        Part(name="the largest weight", bytes=at_once * largest),
        Part(name="copies for a checkpoint", bytes=WRITTEN_AT_ONCE * 4 * largest, on_device=not run.on_gpu),
    )
    return Stage(name="save", parts=parts)


STAGES: tuple[Callable[[Planned], Stage | None], ...] = (encode, draw, warm_up, update, grids, save)


def stages_of(run: Planned) -> tuple[Stage, ...]:
    """In the order of the run."""
    return tuple(stage for make in STAGES if (stage := make(run)) is not None)


def _drawing_parts(run: Planned, held: tuple[Part, ...], *, adapters: bool) -> tuple[Part, ...]:
    recipe = run.recipe
    plan = SamplePlan.of(run.backbone, recipe, run.num_prompts, processes=run.processes)
    count = run.drawn_at_once(min(plan.part_rows, plan.count))
    rows = count * _branches(plan.guidance_scale)
    peak = simulated_draw(run.backbone, run.student, recipe, rows, on_gpu=run.on_gpu, adapters=adapters)
    negative = (Part(name="negative weights", bytes=run.base),) if adapters and recipe.train == "full" else ()
    return (
        *held,
        *negative,
        Part(name="VAE", bytes=run.decoding.weights),
        Part(name=f"a forward of {rows} rows (simulated)", bytes=peak),
        Part(name=f"{count} samples", bytes=4 * 4 * count * torch.Size(run.backbone.latent_shape).numel()),
    )


def _on_device(parts: tuple[Part, ...]) -> int:
    return sum(part.bytes for part in parts if part.on_device)


def _branches(scale: float) -> int:
    return 2 if scale > 1 else 1
