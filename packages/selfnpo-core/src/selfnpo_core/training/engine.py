"""The updates of a run, as a generator: the caller owns files, progress and stopping.

An update draws its rows, asks the teacher, re-noises, takes the student's loss backwards in `grad_accumulation`
parts, steps the optimizer and moves the teacher. All processes draw update n from a generator seeded with n and keep
their own rows, so a resumed run makes the same numbers, on any number of processes whose updates have as many rows;
no state of a random generator needs to be kept.
`state` and `load` hold all that a run must remember, whole and the same for every engine.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from selfnpo_core.ema import power_decay
from selfnpo_core.errors import InputError, RunError
from selfnpo_core.models.backbone import Backbone
from selfnpo_core.ranks import Ranks
from selfnpo_core.system.processes import joined
from selfnpo_core.training.accelerators import AMP, learning_rate_at, seed_for, zero3_settings
from selfnpo_core.training.checkpoint import State
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.rollouts import SHARED, Watch, make_teacher, unwatched
from selfnpo_core.training.samples import Samples
from selfnpo_core.training.sources import make_source
from selfnpo_core.training.spread import Spreads, own_spread
from selfnpo_core.training.steps import UpdateResult, make_steps
from selfnpo_core.training.students import make_student
from selfnpo_core.training.updates import Denoisers, RowCounter, noised_looks, update_loss

SPREAD = (1 << 20) + 3
"""A stream of random numbers, apart from those of updates and of samples."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is known of an update after it was made. Rows are forwards' rows of this process.

    loss: the mean over all processes. drift: as it was last measured. spread: of what was trained on (see `spread`), of
    updates that were measured. skipped: updates of the run so far whose loss or gradient was not finite, and
    which therefore moved nothing.
    """

    step: int
    loss: float
    drift: float
    grad_norm: float
    lr: float
    seconds: float
    teacher_rows: int
    student_rows: int
    base_rows: int
    skipped: int = 0
    spread: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        spread = values.pop("spread")
        return {**values, **spread}


class Engine:
    """Networks, optimizer, source and random numbers of one process. Close it to give the backbone back."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        num_prompts: int,
        accelerator: Accelerator,
        samples: Samples | None = None,
    ):
        self.backbone, self.recipe, self.accelerator = backbone, recipe, accelerator
        self.ranks = Ranks(accelerator.process_index, accelerator.num_processes)
        self._num_prompts = num_prompts
        self.step, self.skipped, self.drift, self.counter = 0, 0, 0.0, RowCounter()
        self._own_spread: float | None = None
        offload = accelerator.device if recipe.group_offload else None
        self.student = make_student(backbone, recipe, offload=offload)
        self.student.place(accelerator.device, zero3_settings(accelerator))
        self.student.network.eval()  # no dropout: teacher and student answer alike
        self.steps = make_steps(accelerator, recipe, self.student.network, self.student.parameters)
        self.student.use(self.steps.network)
        self.denoisers = Denoisers(
            backbone=backbone, weights=self.student, counter=self.counter, amp=AMP[recipe.mixed_precision]
        )
        self.generator = torch.Generator().manual_seed(self._seed(0))
        self.source = make_source(
            recipe,
            make_teacher(recipe, self.denoisers.teacher),
            backbone.schedule,
            shape=tuple(backbone.latent_shape),
            num_prompts=num_prompts,
            generator=self.generator,
            device=accelerator.device,
            ranks=self.ranks,
            samples=samples,
        )

    @property
    def rows_per_update(self) -> int:
        """Of all processes."""
        return self.recipe.update_rows * self.ranks.count

    def spreads(self) -> Spreads | None:
        """To be filled; none where the model's own spread is not known."""
        if self._own_spread is None:
            return None
        return Spreads(self.backbone.schedule, self.accelerator.device, self._own_spread)

    def measure_own_spread(self) -> None:
        """Of the base's samples, once a run. Not for finished samples, which are its own."""
        if self.recipe.rollout != "samples" and self._own_spread is None:
            with self.student.role("base"):
                self._own_spread = own_spread(
                    self.denoisers.base,
                    self.backbone.schedule,
                    shape=tuple(self.backbone.latent_shape),
                    num_prompts=self._num_prompts,
                    batch_size=self.recipe.batch_size,
                    generator=torch.Generator().manual_seed(seed_for(self.recipe.seed, SPREAD)),
                    device=self.accelerator.device,
                )

    def warm_up(self, check: Callable[[], None] = lambda: None, watch: Watch = unwatched) -> None:
        """Prepare the source of samples; before the first update of a new run, or of one that was stopped within it."""
        self.measure_own_spread()
        self.source.warm_up(self.recipe.batch_size, check, watch)

    def updates(self) -> Iterator[Update]:
        """Make and yield the updates that are left."""
        while self.step < self.recipe.steps:
            yield self._update()

    def _update(self) -> Update:
        started, step = time.perf_counter(), self.step + 1
        self.counter.reset()
        self.generator.manual_seed(self._seed(step))
        torch.manual_seed(
            seed_for(self.recipe.seed, 1 + self.ranks.index, step)
        )  # for networks that draw by themselves
        rate = learning_rate_at(step, self.recipe)
        self.steps.set_rate(rate)
        measured = self._is_measured(step)
        spreads = self.spreads() if measured else None
        made = self._descend(spreads)
        self.skipped += made.skipped
        if self.skipped > self.recipe.max_skipped:
            raise RunError(self._why_not_finite(made, step))
        if made.moved:
            average = self.recipe.averaging
            self.student.update_teacher(self.recipe.ema_decay if average is None else power_decay(step, average))
        self.step = step
        if measured:
            self.drift = self.student.drift()
        return Update(
            step=step,
            loss=made.loss,
            drift=self.drift,
            grad_norm=made.grad_norm,
            lr=rate,
            seconds=time.perf_counter() - started,
            teacher_rows=self.counter.teacher,
            student_rows=self.counter.student,
            base_rows=self.counter.base,
            skipped=self.skipped,
            spread={} if spreads is None else spreads.measured(),
        )

    def _is_measured(self, step: int) -> bool:
        """Whatever a run's length, so that one that goes on for longer has measured the same."""
        return step <= self.recipe.measure_every or step % self.recipe.measure_every == 0

    def _descend(self, spreads: Spreads | None) -> UpdateResult:
        """Backward passes and the optimizer's step."""
        for noised in noised_looks(self.source, self.backbone, self.recipe, self.generator, self.ranks):
            if spreads is not None:
                spreads.add(noised.look.x_t, noised.look.t, noised.look.weak.x0)
            with self.steps.part():
                self.steps.backward(update_loss(noised, self.denoisers, self.recipe))
        made = self.steps.finish()
        self.source.put_back()  # which may ask the teacher, when gradients are gone
        return made

    def exported(self) -> AbstractContextManager[None]:
        """Within, the student is what is saved and drawn with: its average, if the recipe says so, else itself."""
        return nullcontext() if self.recipe.averaging is None else self.student.averaged()

    def _why_not_finite(self, made: UpdateResult, step: int) -> str:
        cure = f"lower learning_rate ({self.recipe.learning_rate:g})"
        if self.recipe.mixed_precision == "fp16":
            cure += ", or use mixed_precision bf16"
        return (
            f"loss {made.loss}, gradient {made.grad_norm} at update {step}, the {self.skipped}th that is not finite "
            f"(max_skipped is {self.recipe.max_skipped}): {cure}, or bring teacher_guidance nearer to 0"
        )

    def _seed(self, step: int) -> int:
        return seed_for(self.recipe.seed, 0, step)

    def state(self) -> State:
        """For all processes to call together, and to walk through together; what is not walked through, as the source's
        tensors, is whole in the first one and not there in the others."""
        keep, scaler = self.accelerator.is_main_process, self.accelerator.scaler
        optimizer, settings = self.steps.state()
        source, owners = self.source.state_dict(), self.source.owners()
        for name in SHARED if owners else ():
            if name in source:
                source[name] = joined(source[name], owners, self.accelerator.device, keep)  # type: ignore[assignment]
        return State(
            step=self.step,
            tensors={
                **self.student.walks(),
                "optimizer": optimizer,
                "source": source,
            },
            values={
                "optimizer": settings,
                "scaler": None if scaler is None else scaler.state_dict(),
                "processes": self.accelerator.num_processes,
                "rows_per_update": self.rows_per_update,
                "skipped": self.skipped,
                "drift": self.drift,
                "own_spread": self._own_spread,
            },
        )

    def load(self, state: State) -> None:
        """Go on from here, on any engine and any number of processes."""
        rows = state.values["rows_per_update"]
        if rows != self.rows_per_update and not self.recipe.other_batch_on_resume:
            raise InputError(
                f"the checkpoint's updates have {rows} rows and this run's {self.rows_per_update}, so it would go on "
                "with other draws and another gradient noise: change batch_size, grad_accumulation or the number of "
                "processes, or accept it with --set other_batch_on_resume=true"
            )
        self.student.load_state_dict(state.tensors)
        self.steps.load(state.tensors["optimizer"], state.values["optimizer"])
        self.source.load_state_dict(state.tensors["source"])
        if self.accelerator.scaler is not None and state.values["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state.values["scaler"])
        self.step, self.skipped = state.step, state.values["skipped"]
        self._own_spread = state.values.get("own_spread")
        self.drift = state.values["drift"] if "drift" in state.values else self.student.drift()

    def close(self) -> None:
        self.student.before_close()
        self.accelerator.unwrap_model(self.steps.network, keep_fp32_wrapper=False)
        vars(self.student.network).pop("forward", None)  # left behind by Accelerate; a copy would call the original
        self.student.close()
        self.accelerator.free_memory()
