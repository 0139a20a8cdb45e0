"""Who draws a run's finished samples: all processes together, before the first update and where a round begins.

    round 0            by the base: θ(c) against θ(∅)
    round 1, 2, …      θ(c) against (θ + β·δ)(∅), δ being the weights in training as they then are

What an earlier run has drawn alike comes from the store of such samples (`sample_store`), and what is drawn goes there;
later rounds' samples are nobody else's. A signal stops drawing after the parts in hand.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from selfnpo_core.errors import RunError
from selfnpo_core.models.backbone import Backbone, NegativeWeights, SamplingBackbone
from selfnpo_core.models.embeddings import arithmetic
from selfnpo_core.models.storage import resident
from selfnpo_core.system.caches import checksum
from selfnpo_core.system.compiling import compiled, why_not
from selfnpo_core.system.durations import duration
from selfnpo_core.system.processes import gathered, largest, on_main
from selfnpo_core.system.signals import StopSignals, interrupted_by
from selfnpo_core.training.accelerators import AMP
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.sample_store import SampleStore
from selfnpo_core.training.samples import FinishedSamples, SamplePlan
from selfnpo_core.training.student import Student

log = logging.getLogger(__name__)
Draw = Callable[[Sequence[str], Sequence[int]], Tensor]
"""(prompts, seeds) → x0: (n, *S)."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Of one run. folder: its latents. facts: what they are drawn of. To be called by all processes together."""

    backbone: Backbone
    recipe: Recipe
    prompts: Sequence[str]
    folder: Path
    facts: Mapping[str, Any]
    accelerator: Accelerator
    progress: bool = True

    def first(self) -> FinishedSamples:
        """Round 0. The backbone is as it was loaded: no LoRA, nothing in pieces."""
        samples, network = self._samples(0), self.backbone.denoiser
        compiles = on_main(lambda: self._compiles(samples))
        facts = {**self.facts, **({"compiled": True} if compiles else {})}
        on_main(lambda: samples.begin(facts))
        store = self._store(samples.plan, facts)
        if store is not None:
            on_main(lambda: samples.take_from(store))
        if missing := on_main(samples.missing):
            dtype = torch.float32 if self.recipe.train == "full" else None  # the base may wait as it is stored
            place = resident(network, self.accelerator.device, dtype)
            with place, compiled(network) if compiles else nullcontext():
                self._draw(samples, missing, self._sampler(samples.plan), store)
            if store is not None:
                store.sweep()
        return samples

    def next(self, number: int, student: Student) -> FinishedSamples:
        """Round `number` > 0, which begins now, with the student's weights on the negative branch."""
        samples, beta = self._samples(number), self.recipe.recommended.beta
        weights = student.walks()["student"]
        numbers = checksum("", weights.one_by_one(list(weights)), weights.outlines.values())
        whose = {"round": number, "beta": beta, "negative_sha256": numbers}
        on_main(lambda: samples.begin({**self.facts, **whose}))
        negative = student.negative()
        with student.role("base"):
            self._draw(samples, on_main(samples.missing), self._sampler(samples.plan, negative, beta))
        return samples

    def kept(self, number: int) -> FinishedSamples:
        """Round `number` > 0, which began earlier. Raises `RunError` if some are gone: their weights are gone too."""
        samples = self._samples(number)
        if on_main(samples.missing):
            start = self.recipe.round_start(number)
            raise RunError(
                f"samples in {samples.folder} are gone or damaged, and the weights that drew them are those of update "
                f"{start}: bring them back, or remove the checkpoints after update {start} and --resume"
            )
        return samples

    def _samples(self, number: int) -> FinishedSamples:
        processes = self.accelerator.num_processes
        plan = SamplePlan.of(self.backbone, self.recipe, len(self.prompts), processes=processes, number=number)
        return FinishedSamples(self.folder / f"round-{number}" if number else self.folder, plan)

    def _sampler(self, plan: SamplePlan, negative: NegativeWeights = None, beta: float = 1.0) -> Draw:
        assert isinstance(self.backbone, SamplingBackbone)
        return partial(
            self.backbone.draw_latents,
            guidance_scale=plan.guidance_scale,
            steps=plan.steps,
            negative=negative,
            beta=beta,
        )

    def _compiles(self, samples: FinishedSamples) -> bool:
        """Whether the base is compiled to draw; of samples that are there, whether it was."""
        if not samples.missing():
            return bool(samples.said().get("compiled"))
        why = why_not(self.accelerator.device) if self.recipe.compile_drawing else None
        if why is not None:
            log.warning("nothing can be compiled here (%s): samples are drawn without (compile_drawing)", why)
        return self.recipe.compile_drawing and why is None

    def _store(self, plan: SamplePlan, facts: Mapping[str, Any]) -> SampleStore | None:
        """Where samples like these are kept, if the recipe wants it."""
        recipe = self.recipe
        if recipe.samples_cache is None:
            return None
        assert isinstance(self.backbone, SamplingBackbone)
        how = {name: value for name, value in plan.facts().items() if name != "count"}
        precision = {"mixed_precision": recipe.mixed_precision, "attention": recipe.attention}
        own = {**how, **precision, "sampler": self.backbone.drawing_facts(), **arithmetic(self.accelerator.device)}
        return SampleStore.of(recipe.samples_cache, {"schema": 1, **facts, **own})

    def _draw(
        self, samples: FinishedSamples, missing: Sequence[int], draw: Draw, store: SampleStore | None = None
    ) -> None:
        plan = samples.plan
        left = sum(len(plan.rows(part)) for part in missing)
        shown = self.progress and bool(missing) and self.accelerator.is_main_process
        amp, processes = AMP[self.recipe.mixed_precision], self.accelerator.num_processes
        with (
            StopSignals() as signals,
            torch.autocast(self.accelerator.device.type, dtype=amp, enabled=amp is not None),
            tqdm(total=plan.count, initial=plan.count - left, desc="draw", unit="sample", disable=not shown) as bar,
        ):
            started = time.monotonic()
            for first in range(0, len(missing), processes):
                self._stop_if_asked(signals)
                together = missing[first : first + processes]
                self._draw_own(samples, together, draw, store)
                bar.update(made := sum(len(plan.rows(part)) for part in together))
                if first == 0 and left > made:
                    seconds = (time.monotonic() - started) * (left - made) / made
                    log.info("drawing takes about %s for the %d samples that are left", duration(seconds), left - made)
            self._stop_if_asked(signals)

    def _draw_own(
        self, samples: FinishedSamples, together: Sequence[int], draw: Draw, store: SampleStore | None
    ) -> None:
        """This process's part of those that are drawn at the same time; if one process fails, none waits for it."""
        plan, rank = samples.plan, self.accelerator.process_index

        def work() -> None:
            for part in together[rank : rank + 1]:
                rows = plan.rows(part)
                texts = [self.prompts[row] for row in plan.prompts()[list(rows)].tolist()]
                x0 = draw(texts, plan.seeds(rows))
                if not x0.isfinite().all():
                    raise RunError(
                        f"{self.backbone.name} drew samples that are not finite: use mixed_precision bf16 or no"
                    )
                samples.write(part, x0)
                if store is not None:
                    store.give(rows, samples.file(part))

        gathered(work)

    def _stop_if_asked(self, signals: StopSignals) -> None:
        if number := largest(signals.received or 0, self.accelerator.device):
            raise interrupted_by(
                number, f"stopped while drawing samples in {self.folder}: go on with the same command and --resume"
            )
