"""The updates of a run, as a generator: the caller owns files, progress and stopping.

An update draws its rows, asks the teacher, re-noises, takes the student's loss backwards in `grad_accumulation`
parts, steps the optimizer and moves the teacher. Update n of process r draws from a generator seeded with
(seed, r, n), so a resumed run makes the same numbers. `state` and `load` hold all that a run must remember.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from selfnpo_core.errors import RunError
from selfnpo_core.training.accelerators import AMP, learning_rate_at, make_optimizer, seed_for
from selfnpo_core.training.backbone import Backbone
from selfnpo_core.training.checkpoint import State
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.rollouts import Teacher, make_source
from selfnpo_core.training.student import make_student
from selfnpo_core.training.updates import Denoisers, RowCounter, noised_looks, update_loss


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is known of an update after it was made. Rows are forwards' rows of this process."""

    step: int
    loss: float
    drift: float
    grad_norm: float
    lr: float
    seconds: float
    teacher_rows: int
    student_rows: int
    base_rows: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Engine:
    """Networks, optimizer, source and random numbers of one process. Close it to give the backbone back."""

    def __init__(self, backbone: Backbone, recipe: Recipe, num_prompts: int, accelerator: Accelerator):
        self.backbone, self.recipe, self.accelerator = backbone, recipe, accelerator
        self.step, self.counter = 0, RowCounter()
        self.student = make_student(backbone, recipe)
        self.student.network.to(accelerator.device).eval()  # no dropout: teacher and student answer alike
        optimizer = make_optimizer(self.student.parameters.values(), recipe)
        prepared, self.optimizer = accelerator.prepare(self.student.network, optimizer)
        self._prepared = prepared
        self.student.use(prepared)
        self.denoisers = Denoisers(
            backbone=backbone, weights=self.student, counter=self.counter, amp=AMP[recipe.mixed_precision]
        )
        self.generator = torch.Generator().manual_seed(self._seed(0))
        strong = recipe.strong_guidance if recipe.needs_strong else None
        self.source = make_source(
            recipe,
            Teacher(denoise=self.denoisers.teacher, weak=recipe.teacher_guidance, strong=strong),
            backbone.schedule,
            shape=tuple(backbone.latent_shape),
            num_prompts=num_prompts,
            generator=self.generator,
            device=accelerator.device,
        )

    def warm_up(self, check: Callable[[], None] = lambda: None) -> None:
        """Prepare the source of samples; before the first update of a new run."""
        self.source.warm_up(self.recipe.batch_size, check)

    def updates(self) -> Iterator[Update]:
        """Make and yield the updates that are left."""
        while self.step < self.recipe.steps:
            yield self._update()

    def _update(self) -> Update:
        started, step = time.perf_counter(), self.step + 1
        self.counter.reset()
        self.generator.manual_seed(self._seed(step))
        rate = learning_rate_at(step, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, grad_norm = self._descend(step)
        if not self.optimizer.step_was_skipped:
            self.student.update_teacher(self.recipe.ema_decay)
        self.step = step
        return Update(
            step=step,
            loss=loss,
            drift=self.student.drift(),
            grad_norm=grad_norm,
            lr=rate,
            seconds=time.perf_counter() - started,
            teacher_rows=self.counter.teacher,
            student_rows=self.counter.student,
            base_rows=self.counter.base,
        )

    def _descend(self, step: int) -> tuple[float, float]:
        """Backward passes and the optimizer's step; (loss, norm of the gradient before clipping)."""
        losses, norm = [], math.nan
        parameters = list(self.student.parameters.values())
        for noised in noised_looks(self.source, self.backbone, self.recipe, self.generator):
            with self.accelerator.accumulate(self._prepared):
                loss = update_loss(noised, self.denoisers, self.recipe)
                losses.append(loss.detach())
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self._check_finite("loss", float(torch.stack(losses).mean()), step)
                    limit = self.recipe.max_grad_norm or math.inf
                    norm = float(self.accelerator.clip_grad_norm_(parameters, limit))
                    if self.accelerator.scaler is None:  # an fp16 scaler skips such a step and tries a smaller scale
                        self._check_finite("gradient", norm, step)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return float(torch.stack(losses).mean()), norm

    def _check_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            cure = f"lower learning_rate ({self.recipe.learning_rate:g})"
            if self.recipe.mixed_precision == "fp16":
                cure += ", or use mixed_precision bf16"
            raise RunError(f"{what} is {value} at update {step}: {cure}, or bring teacher_guidance nearer to 0")

    def _seed(self, step: int) -> int:
        return seed_for(self.recipe.seed, self.accelerator.process_index, step)

    def state(self) -> State:
        optimizer, settings = _split_optimizer(self.optimizer.state_dict())
        rank, scaler = self.accelerator.process_index, self.accelerator.scaler
        return State(
            step=self.step,
            tensors={
                **self.student.state_dict(),
                "optimizer": optimizer,
                f"source-{rank}": self.source.state_dict(),
                f"rng-{rank}": {"generator": self.generator.get_state(), **_rng_state()},
            },
            values={
                "optimizer": settings,
                "scaler": None if scaler is None else scaler.state_dict(),
                "processes": self.accelerator.num_processes,
            },
        )

    def load(self, state: State) -> None:
        processes, rank = state.values["processes"], self.accelerator.process_index
        if processes != self.accelerator.num_processes:
            raise RunError(f"the checkpoint is of a run of {processes} processes: resume with as many")
        self.student.load_state_dict(state.tensors)
        self.optimizer.load_state_dict(_join_optimizer(state.tensors["optimizer"], state.values["optimizer"]))
        self.source.load_state_dict(state.tensors[f"source-{rank}"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.values["scaler"])
        rng = dict(state.tensors[f"rng-{rank}"])
        self.generator.set_state(rng.pop("generator"))
        _set_rng_state(rng)
        self.step = state.step

    def close(self) -> None:
        self.accelerator.unwrap_model(self._prepared, keep_fp32_wrapper=False)
        vars(self.student.network).pop("forward", None)  # left behind by Accelerate; a copy would call the original
        self.student.close()
        self.accelerator.free_memory()


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors, named INDEX.KEY, and what json can hold."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            target: dict[str, Any] = tensors if isinstance(value, Tensor) else scalars
            target[f"{index}.{key}"] = value
    return tensors, {"param_groups": state["param_groups"], "scalars": scalars}


def _join_optimizer(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **settings["scalars"]}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in settings["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _rng_state() -> dict[str, Tensor]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), **{f"cuda.{i}": state for i, state in enumerate(devices)}}


def _set_rng_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda.{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda.{i}"], i)
