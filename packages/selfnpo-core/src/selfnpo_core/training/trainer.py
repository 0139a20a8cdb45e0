"""A training run with its folder: progress, metrics, pictures, checkpoints, stopping, and the npo folder at the end.

Of several processes the first one writes, and each a share of a checkpoint of all weights; all of them see the folder.
None works alone while others wait for it in the middle of an update: pictures are shared out, and saving is quick.
"""

import importlib.metadata
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.models.backbone import Backbone, MovingBackbone, NegativeWeights
from selfnpo_core.models.embeddings import EmbeddingsCache
from selfnpo_core.models.identity import fingerprint
from selfnpo_core.system.caches import cache_folder
from selfnpo_core.system.disk import is_disk_full
from selfnpo_core.system.processes import is_main, largest, on_main, shared_out
from selfnpo_core.system.signals import StopSignals, interrupted_by
from selfnpo_core.training.accelerators import AMP, make_accelerator, start_trackers
from selfnpo_core.training.checkpoint import agreed_checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from selfnpo_core.training.drawing import Drawing
from selfnpo_core.training.engine import Engine, Update
from selfnpo_core.training.estimate import check_pool, out_of_memory
from selfnpo_core.training.lora_student import lora_target_modules
from selfnpo_core.training.pictures import moving_grid, sample_grid, strip
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.rollouts import unwatched
from selfnpo_core.training.run_folder import RunFolder, holds_run, prompts_sha256, stored_recipe
from selfnpo_core.training.samples import SamplePlan
from selfnpo_core.training.sources import SampleSource
from selfnpo_core.training.spread import beyond
from selfnpo_core.training.trackers import show_samples
from selfnpo_core.training.updates import check_window
from selfnpo_core.weights.npo_folder import NpoConfig, write_npo

log = logging.getLogger(__name__)
WARM_UP_KEPT_SECONDS = 600


def train(
    backbone: Backbone,
    recipe: Recipe,
    prompts: Sequence[str],
    output: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train, and return the folder of the negative weights, output/npo.

    Raises `InputError` before anything is written, `RunError` if the run fails, `Interrupted` after a signal; in each
    case the newest checkpoint in `output` is whole and `resume=True` goes on from it.
    """
    if not prompts:
        raise InputError("there are no prompts: give a file with one prompt a line")
    accelerator = make_accelerator(recipe, Path(output) / "logs")
    if recipe.train == "lora":
        lora_target_modules(backbone, recipe.targets)
    check_window(backbone, recipe)
    if recipe.rollout == "samples":
        recipe = _counted(recipe, accelerator.num_processes, output, resume=resume)
        SamplePlan.of(backbone, recipe, len(prompts))
        cache_folder("samples_cache", recipe.samples_cache, "samples")
    _check_rows(recipe, accelerator.num_processes)
    check_pool(backbone, recipe, accelerator.device, accelerator.num_processes)
    cache = EmbeddingsCache.of(recipe.embeddings_cache)
    backbone.use_attention(recipe.attention, AMP[recipe.mixed_precision])
    facts = {"family": backbone.family, "base_hash": backbone.base_hash}
    with ExitStack() as stack:
        try:
            _check_same_base(backbone, accelerator)
            folder = stack.enter_context(_opened(output, recipe, prompts, facts, accelerator, resume=resume))
            config = _npo_config(backbone, recipe)
            shown = recipe.sample_prompts  # their rows come after the prompts', and are not trained with
            with _shared(cache, folder, accelerator) as cached:
                backbone.embed([*prompts, *shown], cached)
            stack.enter_context(_own_random_numbers(accelerator))
            drawing = samples = None
            if recipe.rollout == "samples":
                known = {**facts, "prompts_sha256": prompts_sha256(prompts)}
                drawing = Drawing(
                    backbone=backbone,
                    recipe=recipe,
                    prompts=prompts,
                    folder=folder.latents,
                    facts=known,
                    accelerator=accelerator,
                    progress=progress,
                )
                samples = drawing.first()
            engine = Engine(backbone, recipe, len(prompts), accelerator, samples)
            stack.callback(engine.close)
            trainer = Trainer(engine, folder, config, prompts, drawing, progress=progress)
            stack.callback(trainer.close)
            return trainer.fit()
        except Exception as error:
            if (why := _known_cause(error, accelerator, backbone, recipe)) is None:
                raise
            raise RunError(f"{why}, then go on with --resume; {_last_whole(Path(output))}") from error


@contextmanager
def _shared(
    cache: EmbeddingsCache | None, folder: RunFolder, accelerator: Accelerator
) -> Iterator[EmbeddingsCache | None]:
    """What the prompts' embeddings are shared through: several processes have a folder for it in any case."""
    if cache is not None or accelerator.num_processes == 1:
        yield cache
        return
    passing = folder.path / ".embeddings"
    yield EmbeddingsCache(passing)
    on_main(lambda: shutil.rmtree(passing, ignore_errors=True))


def _own_random_numbers(accelerator: Accelerator) -> Any:
    """The caller's global generators are as before when the run has ended."""
    return torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else [])


@contextmanager
def _opened(
    output: str | Path,
    recipe: Recipe,
    prompts: Sequence[str],
    facts: dict[str, str],
    accelerator: Accelerator,
    *,
    resume: bool,
) -> Iterator[RunFolder]:
    """The run folder, locked by the first process for all."""
    with ExitStack() as stack:

        def open_it() -> None:
            stack.enter_context(RunFolder.open(output, recipe, prompts, facts, resume=resume))

        on_main(open_it)
        folder = RunFolder(Path(output))
        missing = largest(int(not holds_run(output)), accelerator.device)
        if missing:
            raise RunError(f"{output} is not seen by all processes: choose a folder on a file system that they share")
        yield folder


def _check_same_base(backbone: Backbone, accelerator: Accelerator) -> None:
    first = on_main(lambda: backbone.base_hash)
    if largest(int(backbone.base_hash != first), accelerator.device):
        raise RunError(f"the processes have read different weights as {backbone.name}: give all of them the same base")


def _counted(recipe: Recipe, processes: int, output: str | Path, *, resume: bool) -> Recipe:
    """With the number of its finished samples, which stays what it was when a run goes on for longer."""
    if recipe.samples is not None:
        return recipe
    kept = stored_recipe(output).samples if resume and holds_run(output) else None
    return recipe.model_copy(update={"samples": kept or recipe.sample_count(processes)})


def _check_rows(recipe: Recipe, processes: int) -> None:
    if recipe.rollout == "pool" and (problem := recipe.too_small_a_pool(processes)):
        raise InputError(problem)
    if recipe.rollout == "samples" and (problem := recipe.too_few_samples(processes)):
        raise InputError(problem)


def _known_cause(error: Exception, accelerator: Accelerator, backbone: Backbone, recipe: Recipe) -> str | None:
    """In one line, what is nobody's mistake in the code."""
    if is_disk_full(error):
        return "the disk is full: free some space"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return out_of_memory(backbone, recipe, accelerator.device)
    if recipe.compile_drawing and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"{backbone.name} cannot be compiled ({' '.join(str(error).split())[:200]}): set compile_drawing=false"
    lost = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe", "NCCL")
    if accelerator.num_processes > 1 and isinstance(error, RuntimeError) and any(text in str(error) for text in lost):
        return f"another process of this run has ended or hangs ({' '.join(str(error).split())[:200]}): see its message"
    return None


class Trainer:
    """Runs an engine's updates and keeps the run folder."""

    def __init__(
        self,
        engine: Engine,
        folder: RunFolder,
        config: NpoConfig,
        prompts: Sequence[str],
        drawing: Drawing | None = None,
        *,
        progress: bool = True,
    ):
        self.engine, self.folder, self.config, self._drawing = engine, folder, config, drawing
        self.recipe, self.accelerator = engine.recipe, engine.accelerator
        self._sample_prompts = list(self.recipe.sample_prompts or prompts[:4])
        self._plain: dict[float, Sequence[Any]] = {}
        self._saved: int | None = None  # the step of the newest checkpoint
        self._exported: int | None = None  # the step that the npo folder is of, if this process knows
        self._warned: set[str] = set()
        self._signals = StopSignals()
        self._progress = progress and self.accelerator.is_main_process
        if self.accelerator.is_main_process:
            start_trackers(self.accelerator, self.recipe)

    def fit(self) -> Path:
        """Make all updates that are left. Returns the npo folder."""
        with self._signals:
            self._begin()
            with tqdm(
                total=self.recipe.steps, initial=self.engine.step, desc="train", unit="step", disable=not self._progress
            ) as bar:
                for update in self.engine.updates():
                    self._record(update, bar)
                    self._check_drift(update)
                    if _due(update.step, self.recipe.checkpoint_every):
                        self._save()
                    if _due(update.step, self.recipe.sample_every):
                        self._draw(update.step)
                    self._stop_if_asked()
                    if self._begins_round():
                        self._save()  # with the weights that are drawn with
                        self._enter_round()
            self._save()
            if self.recipe.sample_every and self.engine.step % self.recipe.sample_every:
                self._draw(self.engine.step)
        return self.folder.npo

    def close(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _begin(self) -> None:
        newest = agreed_checkpoint(self.folder.checkpoints, self.engine.ranks)
        if newest is not None:
            self.engine.load(load_checkpoint(newest))
            self._saved = self.engine.step or None
            log.info("resuming from %s", newest)
            self._enter_round()
        if self.engine.step == 0:
            self._warm_up()
        on_main(lambda: self.folder.cut_metrics(self.engine.step))

    def _warm_up(self) -> None:
        """Prepare the rollout. What was walked is kept every ten minutes, and when the run is stopped."""
        log.info("preparing the rollout (%s)", self.recipe.rollout)
        source, kept, turns = self.engine.source, time.monotonic(), 0
        self.engine.measure_own_spread()
        spreads = self.engine.spreads()
        shown = self._progress and self.recipe.rollout == "pool"
        with tqdm(desc="warm up", unit="row", disable=not shown) as bar:

            def check() -> None:
                nonlocal kept, turns
                left, turns = source.rows_left, turns + 1
                bar.total = max(bar.total or 0, left)
                bar.update(bar.total - left - bar.n)
                if spreads is not None and turns & (turns - 1) == 0:  # the 1st, 2nd, 4th, 8th, …: it shows early
                    self._warn(spreads.measured())
                late = time.monotonic() - kept > WARM_UP_KEPT_SECONDS
                if self._stop_if_asked(otherwise=0 if late else -1) == 0:
                    self._keep_warm_up()
                    kept = time.monotonic()

            self.engine.warm_up(check, unwatched if spreads is None else spreads.add)
            bar.update((bar.total or 0) - bar.n)
        if spreads is not None:
            self._warn(spreads.measured())
        if self._saved == 0:  # else it took less time than keeping it is worth
            self._keep_warm_up()

    def _keep_warm_up(self) -> None:
        self._keep_state()
        self._saved = 0

    def _keep_state(self) -> None:
        """A checkpoint; of all weights, every process writes a share."""
        state, full = self.engine.state(), self.recipe.train == "full"
        save_checkpoint(self.folder.checkpoints, state, self.recipe.keep_last, self.engine.ranks, shared=full)

    def _warn(self, spreads: Mapping[str, float]) -> None:
        """Of each spread that is out of its limits, once."""
        for name, line in beyond(spreads).items():
            if name not in self._warned and self.accelerator.is_main_process:
                log.warning("%s", line)
            self._warned.add(name)

    def _begins_round(self) -> bool:
        """Whether the next update is the first of a round that is not the first."""
        step, number = self.engine.step, self.recipe.round_of(self.engine.step)
        return 0 < step < self.recipe.steps and number > 0 and step == self.recipe.round_start(number)

    def _enter_round(self) -> None:
        """Have the updates made on the samples of their round, drawn now where it begins."""
        number, source = self.recipe.round_of(self.engine.step), self.engine.source
        if self._drawing is None or number == 0 or self.engine.step >= self.recipe.steps:
            return
        assert isinstance(source, SampleSource)
        if self._begins_round():
            log.info("round %d of %d", number + 1, self.recipe.rounds)
            with self.engine.exported():
                drawn = self._drawing.next(number, self.engine.student)
            source.use(drawn, anew=True)
        else:
            source.use(self._drawing.kept(number), anew=False)

    def _record(self, update: Update, bar: Any) -> None:
        values = update.to_dict()
        self._warn(update.spread)
        if self.accelerator.is_main_process:
            self.folder.add_metrics(values)
        self.accelerator.log({k: v for k, v in values.items() if k != "step"}, step=update.step)
        bar.set_postfix(loss=f"{update.loss:.4g}", drift=f"{update.drift:.3g}", refresh=False)
        bar.update()

    def _check_drift(self, update: Update) -> None:
        if update.drift > self.recipe.max_drift:
            raise RunError(
                f"drift {update.drift:.3g} is over max_drift {self.recipe.max_drift:g} at update {update.step}: the "
                f"weights are moving too far from the base; lower learning_rate or steps, or raise max_drift; "
                f"{_last_whole(self.folder.path)}"
            )

    def _stop_if_asked(self, otherwise: int = 0) -> int:
        """Where no process has a signal, the largest of what they say otherwise, which is 0 or less."""
        number = largest(self._signals.received or otherwise, self.accelerator.device)
        if number <= 0:  # a signal that came while the processes asked one another is for the next time
            return number
        step = self.engine.step
        if step:
            self._save()
        else:
            self._keep_warm_up()
        done = f"stopped and saved after update {step}" if step else "stopped and saved while the rollout was prepared"
        raise interrupted_by(number, f"{done} in {self.folder.path}: go on with the same command and --resume")

    def _save(self) -> None:
        """A checkpoint and the npo folder as they are now, each once a step."""
        step = self.engine.step
        if self._saved != step:
            self._keep_state()
            self._saved = step
        if self._exported != step:
            saving = self.engine.student.saving(self.folder.path, self.engine.ranks)
            with self.engine.exported(), saving as saver:
                on_main(lambda: write_npo(self.folder.npo, self.config, saver.write, saver.tensors))
            self._exported = step

    @torch.no_grad()
    def _draw(self, step: int) -> None:
        """samples/step-NNNNNN.png, and .mp4 where samples move; those without negative weights are drawn once."""
        columns: list[tuple[str, Sequence[Any]]] = []
        for scale in self.recipe.sample_guidance_scales:
            if scale not in self._plain:
                self._plain[scale] = self._samples(scale, None)
            with self.engine.exported():
                drawn = self._samples(scale, self.engine.student.negative())
            columns += [(f"scale {scale:g}", self._plain[scale]), ("+ negative", drawn)]
        if is_main():
            self._show(step, columns)

    def _show(self, step: int, columns: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Keep what was drawn, and hand it to the trackers."""
        backbone, file = self.engine.backbone, self.folder.samples / f"step-{step:06d}.png"
        file.parent.mkdir(exist_ok=True)
        clip, frames, fps = None, [], 0
        if isinstance(backbone, MovingBackbone):
            clip, frames, fps = file.with_suffix(".mp4"), moving_grid(columns), backbone.fps
            backbone.write_clip(clip, [np.asarray(frame) for frame in frames])
            columns = [(title, [strip(sample) for sample in samples]) for title, samples in columns]
        sheet = sample_grid(columns)
        sheet.save(file)
        show_samples(self.accelerator.trackers, sheet, step, clip, frames, fps)

    def _samples(self, scale: float, negative: NegativeWeights) -> Sequence[Any]:
        """Each process draws a share; the first one has them all."""
        prompts = list(enumerate(self._sample_prompts))

        def draw(share: Sequence[tuple[int, str]]) -> Sequence[Any]:
            seeds = [self.recipe.sample_seed + i for i, _ in share]
            backbone = self.engine.backbone
            draw = backbone.draw_clips if isinstance(backbone, MovingBackbone) else backbone.draw_samples
            with self.engine.student.role("base"), torch.random.fork_rng():
                return draw(
                    [prompt for _, prompt in share],
                    seeds,
                    guidance_scale=scale,
                    steps=self.recipe.sample_steps,
                    negative=negative,
                )

        return shared_out(prompts, draw) or []


def _npo_config(backbone: Backbone, recipe: Recipe) -> NpoConfig:
    return NpoConfig(
        schema=1,
        family=backbone.family,
        base_model=backbone.name,
        base_hash=backbone.base_hash,
        base_fingerprint=tuple(fingerprint(backbone.denoiser)),
        train=recipe.train,
        rank=recipe.rank if recipe.train == "lora" else None,
        recipe=recipe.model_dump(mode="json"),
        recommended=recipe.recommended,
        negative_condition=recipe.negative_condition,
        null_prompt=recipe.null_prompt,
        versions=package_versions(),
    )


def package_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("selfnpo-core", "torch", "diffusers", "peft")}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _last_whole(output: Path) -> str:
    newest = newest_checkpoint(output / "checkpoints")
    return f"the last checkpoint, {newest.name}, is whole" if newest else "there is no checkpoint yet"
