"""What a run will cost, before it runs: parameters, memory by stage and of an update by part, forwards an update.

Weights and optimizer states are counted. What an update holds besides is the peak of its simulation on shapes alone
(`simulation`), in the types that the device's autocast would have; the other stages are in `stages`. Not in it: the
allocator's own losses and work space of kernels.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from selfnpo_core.errors import InputError
from selfnpo_core.models.backbone import Backbone, embeddings_on_device, is_shared
from selfnpo_core.models.storage import is_kept
from selfnpo_core.system.memory import available
from selfnpo_core.system.memory import size_text as _size
from selfnpo_core.training.accelerators import AMP, zero_settings
from selfnpo_core.training.deepspeed_settings import bucket_bytes, with_buckets
from selfnpo_core.training.host_memory import HostPart, check_host, host_line, host_parts
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.samples import SamplePlan
from selfnpo_core.training.simulation import on_meta, replaced, simulated_peak
from selfnpo_core.training.stages import BASE, Part, Planned, Stage, stages_of
from selfnpo_core.training.streaming import WRITTEN_AT_ONCE
from selfnpo_core.training.student import Student
from selfnpo_core.training.students import make_student
from selfnpo_core.training.updates import check_window, reference_rows, teacher_rows

OPTIMIZER_BYTES = {"adamw": 8, "adamw_fused": 8, "adamw8bit": 2}
WRITTEN, JOINED = "weights while they are written", "the pool while it is written"
Host = tuple[HostPart, ...]


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """The resolved recipe and its cost. `str()` is a table for people. Rows are of forwards, per row of the update."""

    recipe: Recipe
    processes: int = 1
    network_parameters: int
    trained_parameters: int
    memory: tuple[Part, ...]
    """Of an update."""
    stages: tuple[Stage, ...]
    """In the order of the run; the update is one of them."""
    on_gpu: bool = False
    """Whether it is that of a CUDA GPU."""
    teacher_rows: float
    base_rows: float
    student_rows: float = 3.0
    """One forward and a backward, which counts as two."""
    samples: SamplePlan | None = None
    """Those that are drawn before the first update, and as many in each later round."""
    host: Host = ()
    """Of a node, where all weights are trained."""

    @property
    def device_bytes(self) -> int:
        """Of an update."""
        return sum(part.bytes for part in self.memory if part.on_device)

    @property
    def largest(self) -> Stage:
        """The stage that holds the most on the device."""
        return max(self.stages, key=lambda stage: stage.device_bytes)

    @property
    def rows_per_update(self) -> float:
        return self.teacher_rows + self.base_rows + self.student_rows

    def __str__(self) -> str:
        recipe = self.recipe
        share = self.trained_parameters / self.network_parameters
        base = f" + {self.base_rows:g} base" if self.base_rows else ""
        lines = [
            recipe.to_yaml().rstrip(),
            "",
            f"parameters trained   {self.trained_parameters:,} of {self.network_parameters:,} ({share:.2%})",
            f"rows an update       {recipe.update_rows * self.processes} ({recipe.batch_size} × "
            f"{recipe.grad_accumulation}{f' × {self.processes} processes' if self.processes > 1 else ''})",
            f"forwards an update   {self.rows_per_update:g} a row: {self.teacher_rows:g} teacher{base} + "
            f"{self.student_rows:g} student (backward counted as two)",
            *self._drawing(),
            "memory of an update, estimated" + self._whose(),
            *(f"  {p.name:<40}{_size(p.bytes):>10}{'' if p.on_device else '  (host)'}" for p in self.memory),
            f"  {'together on the device':<40}{_size(self.device_bytes):>10}",
            "memory on the device by stage" + self._whose(),
            *(f"  {stage.name:<40}{_size(stage.device_bytes):>10}" for stage in self.stages),
            f"  the most: {self.largest.name}, {_size(self.largest.device_bytes)}",
            *([host_line(self.host)] if self.host else []),
        ]
        return "\n".join(lines)

    def _whose(self) -> str:
        kind = "a CUDA GPU" if self.on_gpu else "the CPU (a GPU's: --set device=cuda)"
        return f", on {kind}" + (", of each process" if self.processes > 1 else "")

    def _drawing(self) -> list[str]:
        """What finished samples cost beside the updates."""
        plan, recipe = self.samples, self.recipe
        if plan is None:
            return []
        rows = recipe.steps * recipe.update_rows * self.processes
        count = plan.count * recipe.rounds
        drawing, training = count * plan.forwards, rows * self.rows_per_update
        each = f"{recipe.rounds} × {plan.count:,}" if recipe.rounds > 1 else f"{count:,}"
        return [
            f"samples drawn        {each} at guidance scale {plan.guidance_scale:g} in {plan.steps} steps: "
            f"{plan.forwards} forwards each, {drawing / rows:.3g} a row of the updates",
            f"forwards in all      {drawing + training:,.0f} of a row: {drawing:,} drawing + {training:,.0f} training",
            f"latents on disk      {_size(count * plan.sample_bytes)}{self._shared()}",
        ]

    def _shared(self) -> str:
        if self.recipe.samples_cache is None:
            return ""
        return ", in the run and in samples_cache as the same files, or twice if these are on two disks"


def dry_run(backbone: Backbone, recipe: Recipe, prompts: Sequence[str], processes: int = 1) -> DryRun:
    """Build the trained weights and run an update, both on shapes alone, and take everything away again.

    The backbone may be on the meta device, without weights: the figures are the same. Memory is that of one of so many
    processes, which share what the recipe's engine splits.
    """
    check_window(backbone, recipe)
    base, plan = backbone.denoiser, None
    if recipe.rollout == "samples":
        plan = SamplePlan.of(backbone, recipe, len(prompts), processes=processes)
    network_parameters = sum(p.numel() for p in base.parameters())
    loaded = _bytes_of(base) if recipe.train == "lora" else 4 * network_parameters  # as it answers, however it waits
    backbone.embed(list(prompts[:1]))
    with replaced([base], on_meta):
        backbone.denoiser = copy.deepcopy(base)  # whose layers may be changed for good
        try:
            with torch.device("meta"):
                student = make_student(
                    backbone, recipe, sharded=False, offload=torch.device("cpu") if recipe.group_offload else None
                )
            trained = student.trained_parameters
            with student.role("base"):
                network = _size_of_all(backbone.denoiser)
            run = Planned(
                backbone=backbone,
                student=student,
                recipe=recipe,
                num_prompts=len(prompts),
                processes=processes,
                on_gpu=is_on_gpu(recipe),
                base=loaded,
                network=network,
                held=_weights(student, recipe, processes),
                rest=_rest(backbone, recipe, len(prompts), processes),
                update=_update(backbone, student, recipe, processes),
            )
            stages, memory = stages_of(run), (*run.held, *run.rest, *run.update)
            host = _host(backbone, student, recipe, memory, processes) if recipe.train == "full" else ()
        finally:
            backbone.denoiser = base
    return DryRun(
        recipe=recipe,
        processes=processes,
        network_parameters=network_parameters,
        trained_parameters=trained,
        memory=memory,
        stages=stages,
        on_gpu=run.on_gpu,
        teacher_rows=teacher_rows(recipe, backbone.schedule.first_trained(backbone.schedule.grid(recipe.grid_steps))),
        base_rows=reference_rows(recipe),
        samples=plan,
        host=host,
    )


def _host(backbone: Backbone, student: Student, recipe: Recipe, memory: Sequence[Part], processes: int) -> Host:
    """What is not on the device, or all where that is the CPU, and what is written at a time."""
    each = [(part.name, part.bytes) for part in memory if not (part.on_device and is_on_gpu(recipe))]
    each.append((WRITTEN, WRITTEN_AT_ONCE * 4 * max(p.numel() for p in student.parameters.values())))
    once = [BASE] if is_shared(backbone) else []
    if recipe.rollout == "pool" and processes > 1:  # that of all processes, in the first
        each.append((JOINED, recipe.pool_size * _trajectory(backbone, recipe)))
        once.append(JOINED)
    return host_parts(each, processes, once)


def check_memory(
    backbone: Backbone, recipe: Recipe, prompts: Sequence[str], device: torch.device, processes: int = 1
) -> None:
    """Raise `InputError`, with what would fit, for a training that needs more than is free on `device`, or on the host.

    backbone: on the meta device, so that nothing has been loaded yet.
    """
    check_pool(backbone, recipe, device, processes)
    free, asked = available(device), dry_run(backbone, recipe, prompts, processes)
    stage = asked.largest
    if stage.device_bytes <= free:
        check_host(asked.host, recipe)
        return
    largest = sorted((part for part in stage.parts if part.on_device), key=lambda part: -part.bytes)[:3]
    parts = ", ".join(f"{part.name} {_size(part.bytes)}" for part in largest)
    for changes in _savings(backbone, recipe):
        changed = recipe.model_copy(update=changes)
        if dry_run(backbone, changed, prompts, processes).largest.device_bytes <= free:
            advice = " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())
            break
    else:
        advice = "a device with more memory, or a smaller model"
    raise InputError(
        f"this training takes {_size(stage.device_bytes)} (to {stage.name}: {parts}), and {device} has {_size(free)} "
        f"free: use {advice}"
    )


def _savings(backbone: Backbone, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Changes to a recipe that need less memory, each more than the one before."""
    changes: dict[str, Any] = {}
    if not recipe.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
        yield dict(changes)
    if recipe.batch_size > 1:
        changes |= {"batch_size": 1, "grad_accumulation": recipe.batch_size * recipe.grad_accumulation}
        yield dict(changes)
    if recipe.rollout == "pool" and recipe.pool_device == "device":
        changes["pool_device"] = "cpu"
        yield dict(changes)
    if recipe.train == "lora" and recipe.engine in ("auto", "ddp") and recipe.base_storage == "same":
        changes["base_storage"] = "fp8"
        yield dict(changes)
    if recipe.engine.startswith("zero") and not recipe.offload_optimizer:
        changes["offload_optimizer"] = True
        yield dict(changes)
    if recipe.sample_every and recipe.sample_tiling is not True:
        yield {**changes, "sample_tiling": True}
    if recipe.sample_every:
        changes["sample_every"] = 0
        yield dict(changes)
    if recipe.train == "full":
        changes["train"] = "lora"
        yield dict(changes)


def out_of_memory(backbone: Backbone, recipe: Recipe, device: torch.device) -> str:
    """What filled a GPU, and the switches that are left."""
    weights = sum(p.numel() * p.element_size() for p in backbone.denoiser.parameters() if p.device.type == device.type)
    peak = torch.cuda.max_memory_allocated(device)
    grids, pool = bool(recipe.sample_every), recipe.rollout == "pool"
    stored = {"gradient_checkpointing": True, "base_storage": "fp8"}
    offloaded = {"gradient_checkpointing": True, "group_offload": True, "sample_every": 0}
    switches = [
        name
        for name, left in (
            ("gradient_checkpointing=true", not recipe.gradient_checkpointing),
            ("batch_size=1 with more grad_accumulation", recipe.batch_size > 1),
            ("mixed_precision=bf16", recipe.mixed_precision == "no"),
            ("chunk_frames", recipe.chunk_frames is None and len(backbone.latent_shape) == 4),
            ("pool_device=cpu", pool and recipe.pool_device == "device"),
            ("offload_optimizer=true with engine=zero2", not recipe.offload_optimizer),
            ("train=lora", recipe.train == "full"),
            ("base_storage=fp8", recipe.base_storage == "same" and _is_possible(recipe, stored)),
            (
                f"group_offload=true{' with sample_every=0' if grids else ''}",
                not recipe.group_offload and _is_possible(recipe, offloaded),
            ),
            ("sample_tiling=true", grids and not recipe.sample_tiling),
            ("sample_every=0 if it was in a sample grid", grids),
        )
        if left
    ]
    return (
        f"out of memory on {device}: {_size(peak)} at the peak, {_size(weights)} of them the network's weights and the "
        f"rest activations, gradients and the optimizer; what is left to --set: {', '.join(switches) or 'nothing'}"
    )


def _is_possible(recipe: Recipe, changes: Mapping[str, Any]) -> bool:
    """Whether a recipe takes them."""
    try:
        Recipe.model_validate({**recipe.model_dump(), **changes})
    except ValidationError:
        return False
    return True


def check_pool(backbone: Backbone, recipe: Recipe, device: torch.device, processes: int = 1) -> None:
    """Raise `InputError` for a pool that does not fit where it is to lie."""
    if recipe.rollout != "pool":
        return
    each = _trajectory(backbone, recipe)
    where = device if recipe.pool_device == "device" else torch.device("cpu")
    free, own = available(where), -(-recipe.pool_size // processes)
    if own * each > free:
        raise InputError(
            f"a pool of {own} trajectories of {_size(each)} takes {_size(own * each)}, and "
            f"{where} has {_size(free)} free: set pool_size to {processes * free // (2 * each)} or less"
        )


def _trajectory(backbone: Backbone, recipe: Recipe) -> int:
    """Bytes of one in the pool, with its end if that is kept."""
    return math.prod(backbone.latent_shape) * 4 * (2 if recipe.pool_target == "endpoint" else 1)


def _stage(recipe: Recipe) -> int:
    """ZeRO splits the optimizer's state (stage 1), gradients too (2), and all weights but a LoRA's (3) (1910.02054).

    FSDP2 splits as stage 3 does, but leaves all of a LoRA whole.
    """
    if recipe.engine == "fsdp2":
        return 3
    return int(recipe.engine[-1]) if recipe.engine.startswith("zero") else 0


def _weights(student: Student, recipe: Recipe, processes: int) -> tuple[Part, ...]:
    """What lies there from the first update to the last."""
    trained, full, stage = 4 * student.trained_parameters, recipe.train == "full", _stage(recipe)
    with student.role("base"):
        base = student.backbone.denoiser
    kind = "" if full else " LoRA"

    def share(count: int, least: int, of_base: bool = False) -> int:
        is_split = stage >= least and (of_base or full or recipe.engine != "fsdp2")
        return -(-count // processes) if is_split else count

    state = share(OPTIMIZER_BYTES[recipe.optimizer] * trained // 4, 1)
    own = share(trained, 3) if full else trained
    waits = full and recipe.objective != "dpo"  # in the host's memory, for drift, pictures and its own spread
    of_base = _bytes_of(base, kept=not recipe.group_offload)
    parts = [
        Part(
            name=BASE,
            bytes=of_base if waits else share(of_base, 3, of_base=True),
            on_device=not recipe.offload_parameters and not (waits and is_on_gpu(recipe)),
        ),
        Part(name=f"student{kind}, float32", bytes=own, on_device=not (full and recipe.offload_parameters)),
        Part(name=f"teacher{kind}, float32", bytes=own, on_device=not (full and recipe.offload_parameters)),
        Part(name=f"optimizer, {recipe.optimizer}", bytes=state, on_device=not recipe.offload_optimizer),
    ]
    if recipe.engine.startswith("zero"):
        copy = share(trained, 1)
        parts.append(Part(name="ZeRO's copy of the student", bytes=copy, on_device=not recipe.offload_optimizer))
        parts.append(Part(name="DeepSpeed's buckets", bytes=_buckets(student, recipe, stage)))
    if recipe.group_offload:  # those in use are the simulation's
        rest = _bytes_of(base) - _bytes_of(base, kept=False)
        parts.append(Part(name="base weights until they are used", bytes=rest, on_device=False))
    if _keeps_gradients(recipe, processes):
        parts.append(Part(name="gradients, float32", bytes=share(trained, 2)))
    return tuple(parts)


def _buckets(student: Student, recipe: Recipe, stage: int) -> int:
    zero = zero_settings(recipe, stage)["zero_optimization"]
    weights = list(student.network.parameters())
    zero = with_buckets(zero, [p.numel() for p in student.parameters.values()], [p.numel() for p in weights])
    sent = 4 if (amp := AMP[recipe.mixed_precision]) is None else amp.itemsize
    return bucket_bytes(zero, sent, max(p.element_size() for p in weights))


def _keeps_gradients(recipe: Recipe, processes: int) -> bool:
    """Whether gradients lie there at all times; else each is made in the backward pass and gone after the step."""
    return _stage(recipe) > 0 or processes > 1 or recipe.grad_accumulation > 1


def _update(backbone: Backbone, student: Student, recipe: Recipe, processes: int) -> tuple[Part, ...]:
    """What comes and goes with every update."""
    own = not _keeps_gradients(recipe, processes)
    on_gpu = is_on_gpu(recipe)
    peak = simulated_peak(backbone, student, recipe, gradients=own, on_gpu=on_gpu)
    if recipe.optimizer == "adamw" and on_gpu and not recipe.offload_optimizer:  # its step makes one more copy
        peak = max(peak, 4 * student.trained_parameters * (2 if own else 1))
    what = "activations and gradients" if own else "activations"
    samples = 2 * recipe.update_rows * math.prod(backbone.latent_shape) * 4
    return (
        Part(name=f"{recipe.update_rows} samples, drawn and advanced", bytes=samples),
        Part(name=f"{what} of {recipe.batch_size} rows (simulated)", bytes=peak),
    )


def is_on_gpu(recipe: Recipe) -> bool:
    """Whether the run is on a CUDA GPU: one that is here, or that the recipe says."""
    return recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available())


def _rest(backbone: Backbone, recipe: Recipe, num_prompts: int, processes: int) -> tuple[Part, ...]:
    embeddings = Part(
        name="prompt embeddings",
        bytes=(num_prompts + 1) * backbone.bytes_per_prompt,
        on_device=embeddings_on_device(backbone),
    )
    if recipe.rollout != "pool":
        return (embeddings,)
    each, own = _trajectory(backbone, recipe), -(-recipe.pool_size // processes)
    name = f"pool, {own} trajectories of {_size(each)}"
    return embeddings, Part(name=name, bytes=own * each, on_device=recipe.pool_device == "device")


def _bytes_of(network: nn.Module, *, kept: bool = True) -> int:
    """Of its own weights, without adapters'. kept: with those that are fetched for each use."""
    named = ((name, parameter) for name, parameter in network.named_parameters() if ".lora_" not in name)
    tensors = [*(p for name, p in named if kept or not is_kept(name)), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size_of_all(network: nn.Module) -> int:
    """With adapters' weights, but for those that are fetched for each use."""
    named = ((name, parameter) for name, parameter in network.named_parameters() if not is_kept(name))
    return sum(tensor.numel() * tensor.element_size() for tensor in (*(p for _, p in named), *network.buffers()))
