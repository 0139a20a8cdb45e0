"""A recipe: everything that decides what a training run computes, validated before any model is loaded.

What a run gets by default is its family's preset (`presets`), which `resolving` merges with a file and single keys. The
fields' own defaults are what a key is where nobody says otherwise, as in `Recipe()`: Self-NPO's (2505.11777), teacher
guidance −1, EMA 0.999, a 25-step grid, pseudo-Huber, on a pool. They stay what they are when presets change.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from selfnpo_core.weights.npo_folder import Recommended
from selfnpo_core.weights.npo_rule import Finite

Presets = Mapping[str, Mapping[str, Any]]
"""A family's settings by what is trained: {"lora": {…}, "full": {…}}."""


def _yaml_no(value: Any) -> Any:
    """YAML reads a bare `no` as false."""
    return "no" if value is False else value


def _listed(value: Any) -> Any:
    """One value stands for a list of one, nothing for an empty list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str | int | float) else value


Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]


POOL_UPDATES = 2
"""Updates' rows that a pool holds at least. Of two successive updates then half the rows at most, in the mean, are the
same trajectories, one step on."""


class Recipe(BaseModel):
    """All settings of a run. `Recipe.model_fields` is the list of keys, with their meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description="base model: a known name, a folder or a file")
    prompts: str = Field("builtin", description="file of prompts, one a line, or `builtin`")
    output: str | None = Field(None, description="run folder")
    embeddings_cache: str | None = Field(
        "auto",
        description="folder that keeps prompts' embeddings from run to run; auto: $XDG_CACHE_HOME/selfnpo/embeddings, "
        "XDG_CACHE_HOME being ~/.cache where it is not set; null: none",
    )
    samples_cache: str | None = Field(
        "auto",
        description="folder that keeps finished samples for later runs that would draw the same; auto: "
        "$XDG_CACHE_HOME/selfnpo/samples; null: none",
    )
    seed: Count = Field(0, description="seed of everything random")

    steps: Positive = Field(1000, description="updates of the weights")
    batch_size: Positive = Field(20, description="rows in one backward pass, per process")
    grad_accumulation: Positive = Field(1, description="backward passes in one update")
    learning_rate: Rate = Field(1e-4)
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after the warm-up")
    warmup_steps: Count = Field(0, description="updates over which the learning rate rises from zero")
    optimizer: Literal["adamw", "adamw_fused", "adamw8bit"] = Field(
        "adamw", description="adamw_fused: one kernel, no copies; adamw8bit: its state in 8 bits"
    )
    weight_decay: Rate = Field(1e-2)
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    max_grad_norm: Above0 | None = Field(1.0, description="clip the gradient's norm; null: no clipping")

    train: Literal["lora", "full"] = Field("lora", description="what is trained")
    rank: Positive = Field(16, description="rank of the LoRA")
    lora_alpha: Above0 | None = Field(None, description="scale of the LoRA times rank; null: the rank")
    targets: str | tuple[str, ...] = Field(
        "attention", description="layers with a LoRA: a name of the family's list, or a list of ends of layer names"
    )

    objective: Literal["tdft", "gradient_reversal", "dpo"] = "tdft"
    loss: Literal["huber", "l2", "denoising"] = Field(
        "huber",
        description="huber, l2: of x0, against what the teacher sees; denoising: the ordinary diffusion loss in the "
        "model's own prediction space, for finished samples (rollout samples, full, or pool with pool_target endpoint)",
    )
    loss_weighting: Literal["none", "snr"] = Field(
        "none", description="of denoising: none, or max(1/(SNR + 0.05), 1/2) on the error of the noise"
    )
    teacher_guidance: Finite = Field(-1.0, description="w: −1 unconditional, 0 conditional")
    advance_guidance: Finite | None = Field(
        None, description="w of what advances trajectories of a pool and truncated ones; null: teacher_guidance"
    )
    strong_guidance: Finite = Field(6.5, description="w_s: what gradient_reversal and dpo move away from")
    reversal_lambda: Annotated[float, Field(ge=0, lt=1)] = 0.25
    dpo_beta: Above0 = 2000.0
    student_prompt_dropout: Fraction = Field(0.0, description="share of null prompts given to the student")
    ema_decay: Fraction = Field(0.999, description="of the teacher")
    average: Annotated[float, Field(gt=0, lt=12**-0.5)] | None = Field(
        None,
        description="what is saved and drawn with is a moving average of the student over about this share of its "
        "updates (σ_rel of 2312.02696); null: the student as it is. Of rollout samples, which asks no teacher",
    )

    rollout: Literal["pool", "truncated", "full", "samples"] = Field(
        "pool",
        description="where x_t comes from; samples: finished ones, drawn by the base before the first update and used "
        "again and again",
    )
    grid_steps: Annotated[int, Field(ge=2, le=1000)] = Field(25, description="points of the denoising grid")
    truncation_steps: Count = Field(5, description="fewest steps of a truncated rollout")
    samples: Positive | None = Field(
        None,
        description="finished samples that are drawn; null: as many as the updates take at `uses` each, and at least "
        "one update's rows",
    )
    uses: Positive = Field(10, description="updates that a finished sample may be used in, at most")
    rounds: Positive = Field(
        1,
        description="times that finished samples are drawn: after every share of the updates anew, with the weights in "
        "training on the negative branch at the recommended beta",
    )
    sample_guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        None, description="guidance scale (1 is none) of finished samples; null: the family's"
    )
    sample_grid_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="steps in which finished samples are drawn; null: the family's"
    )
    compile_drawing: bool = Field(
        False, description="compile the base while it draws its finished samples, where there is a compiler"
    )
    pool_size: Positive = Field(
        256, description="trajectories in the pool, at least two updates' rows; ten updates' are better"
    )
    pool_start: Positive | None = Field(
        None,
        description="trajectories that are walked to their places before the first update, or two updates' rows if "
        "these are more; the rest is while updates are made; null: all",
    )
    pool_target: Literal["estimate", "endpoint"] = Field(
        "estimate",
        description="estimate: what the teacher sees where a trajectory is; endpoint: finished samples, those that the "
        "pool's trajectories ended in, noised from t = 0 on",
    )
    pool_device: Literal["cpu", "device"] = Field("cpu", description="where the pool lives")

    height: Positive | None = Field(None, description="pixels; null: what the model was made for")
    width: Positive | None = Field(None, description="pixels; null: what the model was made for")
    frames: Positive | None = Field(None, description="of a clip; null: what the model was made for")
    chunk_frames: Positive | None = Field(
        None, description="latent frames of the window that an update trains on; null: whole clips"
    )

    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_yaml_no)] = "no"
    gradient_checkpointing: bool = False
    base_storage: Literal["same", "fp8", "int8"] = Field(
        "same", description="how the frozen base under a LoRA lies in memory: as it is calculated with, or in 8 bits"
    )
    group_offload: bool = Field(False, description="the frozen base's layers in the host's memory until they are used")
    engine: Literal["auto", "ddp", "zero1", "zero2", "zero3", "fsdp2"] = "auto"
    offload_optimizer: bool = Field(False, description="ZeRO: the optimizer's state in the host's memory")
    offload_parameters: bool = Field(False, description="ZeRO-3: the weights' pieces in the host's memory")
    deepspeed: str | None = Field(
        None, description="DeepSpeed's JSON file, merged over the engine's settings; null: none"
    )
    process_timeout: Positive = Field(
        600,
        description="seconds that processes wait for one another in an update before the run ends on all; those that "
        "have no work while others draw or write wait as long as it takes",
    )
    other_batch_on_resume: bool = Field(
        False, description="resume although updates get another number of rows than before"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="auto: an accelerator where there is one; cuda: refused where there is none, but by --dry-run, "
        "which says what a GPU would hold",
    )
    attention: str = Field("auto", description="attention implementation, a name the family knows")

    null_prompt: str | None = Field(
        None,
        description="what the null branch is given, in training and, as it is recorded, in sampling: a text such as a "
        "customary negative prompt; null: what the family's own pipeline gives it",
    )
    negative_condition: Literal["null", "prompt"] = Field(
        "null", description="what the weights are to be asked when sampling: the null prompt, or the prompt itself"
    )
    recommended: Recommended = Field(
        Recommended(), description="advice written beside the weights: beta, alpha, guidance_scale, rule"
    )

    measure_every: Positive = Field(
        10,
        description="updates between measurements of `drift` and of the spread of what is trained on; the first so "
        "many are all measured, and others show the last drift",
    )
    max_drift: Above0 = Field(0.25, description="stop when ‖Δθ‖/‖θ‖ is larger")
    max_skipped: Count = Field(10, description="updates that may be skipped as their loss or gradient is not finite")
    checkpoint_every: Count = Field(250, description="updates; 0: only at the end and when interrupted")
    keep_last: Count = Field(2, description="checkpoints kept; 0: all")
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], BeforeValidator(_listed)] = (
        "tensorboard",
    )
    project: str = Field("selfnpo", description="project name for the trackers")

    sample_every: Count = Field(0, description="updates between sample grids; 0: none")
    sample_prompts: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        (), description="prompts of the grids; empty: the first four"
    )
    sample_guidance_scales: Annotated[tuple[Finite, ...], BeforeValidator(_listed)] = (5.0,)
    sample_steps: Positive = 25
    sample_seed: Count = 0
    sample_tiling: bool | None = Field(
        None,
        description="decode sample grids tile by tile: less memory, slightly other pixels where tiles meet; null: "
        "clips whose whole frames do not fit",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        if self.rollout == "pool" and (problem := self.too_small_a_pool(processes=1)):
            raise ValueError(problem)
        if self.rollout == "truncated" and self.truncation_steps >= self.grid_steps:
            raise ValueError(
                f"truncation_steps is {self.truncation_steps}, but must be less than grid_steps, {self.grid_steps}"
            )
        if self.advance_guidance is not None and self.rollout not in ("pool", "truncated"):
            raise ValueError(
                f"advance_guidance is for rollout pool and truncated, whose targets are guided apart: with rollout "
                f"{self.rollout} leave it out"
            )
        self._check_base()
        self._check_loss()
        for key, otherwise in (("pool_target", "estimate"), ("pool_start", None)):
            if getattr(self, key) != otherwise and self.rollout != "pool":
                raise ValueError(f"{key} is of rollout pool: with rollout {self.rollout} leave it out")
        if self.pool_start is not None and self.pool_target == "endpoint":
            raise ValueError("pool_start is of pool_target estimate: walks to their ends need the whole pool")
        if self.trains_on_finished and self.objective != "tdft":
            raise ValueError(
                f"objective {self.objective} needs two estimates of one x_t, and {self._source} has none: "
                "use rollout pool or truncated (--config paper has a pool)"
            )
        self._check_rounds()
        if self.rollout == "samples":
            self._check_samples()
        return self

    def _check_rounds(self) -> None:
        if self.rounds == 1:
            return
        if self.rollout != "samples":
            raise ValueError(f"rounds are of rollout samples, and rollout {self.rollout} draws none: leave rounds out")
        if self.rounds > self.steps:
            raise ValueError(f"rounds is {self.rounds}, but there are only {self.steps} updates (steps): use fewer")
        if self.engine in ("zero3", "fsdp2"):
            raise ValueError(
                f"rounds draw with weights that engine {self.engine} keeps in pieces: use engine ddp, zero1 or zero2, "
                "or rounds 1"
            )

    def _check_samples(self) -> None:
        if problem := self.too_few_samples(processes=1):
            raise ValueError(problem)
        if self.group_offload:
            raise ValueError(
                "rollout samples cannot draw with weights in the host's memory (group_offload): begin with --config "
                "paper, whose rollout is the pool, or use base_storage fp8 without group_offload"
            )

    def sample_count(self, processes: int) -> int:
        """Finished samples that are drawn in each round, by all processes together."""
        if self.samples is not None:
            return self.samples
        rows = self.update_rows * processes
        longest = -(-self.steps // self.rounds)
        return max(rows, -(-longest * rows // self.uses))

    def too_small_a_pool(self, processes: int) -> str | None:
        """Why successive updates would be made on the same trajectories, one step on, if they would."""
        rows, together = self.update_rows * processes, f" of {processes} processes" if processes > 1 else ""
        if self.pool_size >= POOL_UPDATES * rows:
            return None
        return (
            f"pool_size is {self.pool_size}, but one update{together} draws {rows} rows, and a pool of fewer than "
            f"{POOL_UPDATES} updates' rows has them in the next update again: set it to {POOL_UPDATES * rows} or more"
        )

    def first_trajectories(self, processes: int) -> int:
        """Of the pool, which are brought to their places before the first update."""
        least = POOL_UPDATES * self.update_rows * processes
        return min(self.pool_size, self.pool_size if self.pool_start is None else max(self.pool_start, least))

    def too_few_samples(self, processes: int) -> str | None:
        """Why the run would use its finished samples too often, if it would."""
        rows = self.steps * self.update_rows * processes
        drawn = self.sample_count(processes) * self.rounds
        if rows <= drawn * self.uses:
            return None
        enough = -(-rows // (self.uses * self.rounds))
        return (
            f"{drawn} samples, each used {self.uses} times, are {drawn * self.uses} rows, and {self.steps} updates "
            f"take {rows}: set uses to {-(-rows // drawn)} or, in a new run, samples to {enough}"
        )

    def round_of(self, step: int) -> int:
        """Of the update that comes after `step` updates."""
        return min(step * self.rounds // self.steps, self.rounds - 1)

    def round_start(self, number: int) -> int:
        """After how many updates a round begins."""
        return -(-number * self.steps // self.rounds)

    def _check_loss(self) -> None:
        """The diffusion loss is of finished samples: there is no other x0 that x_s was made of."""
        if self.loss != "denoising":
            if self.loss_weighting != "none":
                raise ValueError(f"loss_weighting is of loss denoising, not of {self.loss}: set loss_weighting to none")
            return
        if self.objective != "tdft":
            raise ValueError(f"loss denoising has no form for objective {self.objective}: use objective tdft")
        if not self.trains_on_finished:
            raise ValueError(
                f"loss denoising needs finished samples, and {self._source} has none: use rollout samples or full, "
                "pool_target endpoint, loss huber or l2 (with loss_weighting none), or begin with --config paper"
            )

    def _check_base(self) -> None:
        """What may be done with the base's layers between their uses."""
        moved = [key for key in ("base_storage", "group_offload") if getattr(self, key) not in ("same", False)]
        for key in moved:
            if self.train == "full":
                raise ValueError(f"{key} is for the frozen base under a LoRA: leave it out, or use train lora")
            if not self.gradient_checkpointing:
                raise ValueError(
                    f"{key} saves nothing without gradient_checkpointing, which alone lets go of a layer's weights "
                    "between the forward and the backward pass: use both"
                )
            if self.engine.startswith(("zero", "fsdp")):
                raise ValueError(f"{key} and engine {self.engine} both move the base's weights: use one of them")
        if self.group_offload and self.base_storage == "int8":
            raise ValueError("group_offload keeps weights as they are or in fp8: use base_storage same or fp8")
        if self.group_offload and self.sample_every:
            raise ValueError(
                "sample_every cannot draw with weights in the host's memory (group_offload): set it to 0, and draw "
                "from the run's npo folder"
            )

    @property
    def trains_on_finished(self) -> bool:
        """Whether x_t is a sample without noise."""
        return self.rollout in ("full", "samples") or self.pool_target == "endpoint"

    @property
    def _source(self) -> str:
        return "pool_target endpoint" if self.pool_target == "endpoint" else f"rollout {self.rollout}"

    @property
    def averaging(self) -> float | None:
        """Of the weights that are saved and drawn with. Where a teacher is asked, its average is the one there is."""
        return self.average if self.rollout == "samples" else None

    @property
    def update_rows(self) -> int:
        """Rows of one update in one process."""
        return self.batch_size * self.grad_accumulation

    @property
    def alpha(self) -> float:
        """The LoRA's alpha."""
        return float(self.rank if self.lora_alpha is None else self.lora_alpha)

    @property
    def needs_strong(self) -> bool:
        return self.objective != "tdft"

    @property
    def step_guidance(self) -> float:
        """w of what advances trajectories."""
        return self.teacher_guidance if self.advance_guidance is None else self.advance_guidance

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
