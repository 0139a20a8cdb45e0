"""Finished samples to train on: drawn once, by the family's own sampler, and kept as latents in the run folder.

    latents/samples.json             of what and how they were drawn: hashes of base and prompts, scale, steps, seed
    latents/part-NNNNN.safetensors   x0: (n, *S) float32, prompt: (n,), rows of the prompts
    latents/round-N/                 the same, of samples that were drawn after the first ones

Which sample has which prompt and seed follows from the recipe alone. A part is drawn as one, whatever process draws it,
and is whole or not there: so a run goes on drawing at the part that it was stopped at, and has the same samples, bit
for bit, on any number of processes of one kind of device. Who draws: `drawing`.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.models.backbone import Backbone, SamplingBackbone
from selfnpo_core.system.files import read_json, tidy, write_json
from selfnpo_core.training.accelerators import seed_for
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.sample_store import SampleStore, write_samples

log = logging.getLogger(__name__)
DRAWING, PROMPTS = 1 << 20, (1 << 20) + 1
"""Streams of random numbers, apart from those of updates and of ranks."""
PART_ROWS, PART_BYTES = 64, 64 << 20


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """Which samples a run draws: count, shape S, of how many prompts, and how. guidance_scale: 1 is none.

    round: samples of later ones have other seeds, and go on in the prompts where those before ended.
    """

    count: int
    shape: tuple[int, ...]
    num_prompts: int
    seed: int
    guidance_scale: float
    steps: int
    round: int = 0

    @classmethod
    def of(
        cls, backbone: Backbone, recipe: Recipe, num_prompts: int, *, processes: int = 1, number: int = 0
    ) -> "SamplePlan":
        """The recipe's, or the family's where it has none. Raises `InputError` for a family that cannot draw."""
        if not isinstance(backbone, SamplingBackbone):
            raise InputError(f"{backbone.name} cannot draw latents: use rollout pool, truncated or full")
        scale, steps = backbone.sampling
        if recipe.sample_guidance is not None:
            scale = recipe.sample_guidance
        if recipe.rounds > 1 and scale <= 1:
            raise InputError(
                "rounds draw with the weights in training on the negative branch, and there is none without guidance "
                "(sample_guidance 1): use rounds 1, or a sample_guidance over 1"
            )
        return cls(
            count=recipe.sample_count(processes),
            shape=tuple(backbone.latent_shape),
            num_prompts=num_prompts,
            seed=recipe.seed,
            guidance_scale=scale,
            steps=steps if recipe.sample_grid_steps is None else recipe.sample_grid_steps,
            round=number,
        )

    @property
    def sample_bytes(self) -> int:
        return 4 * math.prod(self.shape)

    @property
    def part_rows(self) -> int:
        """Samples in a part: what is lost at most when drawing is killed."""
        return max(1, min(PART_ROWS, PART_BYTES // self.sample_bytes))

    @property
    def parts(self) -> int:
        return -(-self.count // self.part_rows)

    @property
    def forwards(self) -> int:
        """Of one sample: both branches in every step, unless the scale is none."""
        return self.steps * (2 if self.guidance_scale > 1 else 1)

    def rows(self, part: int) -> range:
        return range(part * self.part_rows, min(self.count, (part + 1) * self.part_rows))

    def prompts(self) -> Tensor:
        """(count,): all prompts in turn, in a seeded order."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, PROMPTS))
        order = torch.randperm(self.num_prompts, generator=generator)
        return order[self._numbers(range(self.count)) % self.num_prompts]

    def seeds(self, rows: range) -> list[int]:
        return [seed_for(self.seed, DRAWING, number) for number in self._numbers(rows).tolist()]

    def _numbers(self, rows: range) -> Tensor:
        """Of samples among those of all rounds."""
        return self.round * self.count + torch.tensor(rows)

    def facts(self) -> dict[str, Any]:
        names = ("count", "seed", "guidance_scale", "steps", "part_rows")
        return {"shape": list(self.shape), **{name: getattr(self, name) for name in names}}


class Samples(Protocol):
    """What updates are made on."""

    plan: SamplePlan

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x0: (B, *S) and prompt: (B,) of rows: (B,)."""


class FinishedSamples:
    """The samples of a plan in their folder. Rows are read as they are asked for, so they take no memory."""

    def __init__(self, folder: Path, plan: SamplePlan):
        self.folder, self.plan = folder, plan
        self._open: dict[int, Any] = {}

    def file(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.safetensors"

    def missing(self) -> list[int]:
        """Parts that are not there, or not as they were written."""
        return [part for part in range(self.plan.parts) if not self._is_whole(part)]

    def _is_whole(self, part: int) -> bool:
        try:
            with safe_open(self.file(part), framework="pt") as file:
                shape = file.get_slice("x0").get_shape()
        except (OSError, SafetensorError):
            return False
        return shape == self.shape_of(part)

    def shape_of(self, part: int) -> list[int]:
        return [len(self.plan.rows(part)), *self.plan.shape]

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Say in the folder what is drawn. Raises `RunError` where something else was.

        Of a later round that is removed: the updates before it were made again.
        """
        self.folder.mkdir(exist_ok=True)
        tidy(self.folder)
        known, drawn = {"schema": 1, **facts, **self.plan.facts()}, sorted(self.folder.glob("part-*.safetensors"))
        if drawn and self.said() != known:
            if self.plan.round == 0:
                raise RunError(f"the samples in {self.folder} were drawn otherwise: begin a new run in another folder")
            for file in drawn:
                file.unlink()
        write_json(self._facts, known)

    def said(self) -> dict[str, Any]:
        """What the folder says of them."""
        known: dict[str, Any] = read_json(self._facts) if self._facts.is_file() else {}
        return known

    @property
    def _facts(self) -> Path:
        return self.folder / "samples.json"

    def write(self, part: int, x0: Tensor) -> None:
        rows = self.plan.rows(part)
        assert x0.shape == (len(rows), *self.plan.shape), f"{tuple(x0.shape)} is not {len(rows)} of {self.plan.shape}"
        write_samples(self.file(part), x0.float(), self.plan.prompts()[list(rows)])

    def take_from(self, store: SampleStore) -> None:
        """Bring what is missing here and there in the store."""
        missing = self.missing()
        found = [part for part in missing if store.take(self.plan.rows(part), self.file(part), self.shape_of(part))]
        count = sum(len(self.plan.rows(part)) for part in found)
        if missing:
            log.info("%d of %d samples found in %s", count, self.plan.count, store.root)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x0: (B, *S) and prompt: (B,) of rows: (B,)."""
        found = [divmod(row, self.plan.part_rows) for row in rows.tolist()]
        x0, prompt = (
            torch.cat([self._part(part).get_slice(name)[row : row + 1] for part, row in found])
            for name in ("x0", "prompt")
        )
        return x0, prompt

    def _part(self, part: int) -> Any:
        if part not in self._open:
            self._open[part] = safe_open(self.file(part), framework="pt")
        return self._open[part]
