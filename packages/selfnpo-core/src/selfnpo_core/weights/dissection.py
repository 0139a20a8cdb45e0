"""What negative weights do on guided trajectories of their base: a knob of contrast, one of scale, or something else.

The base samples with plain guidance, by DDIM (2010.02502), from noise. At each place it is asked with the prompt, with
the null prompt, and with the null prompt under the negative weights θ + β·δ. `selfnpo_core.decomposition` says what is
made of the three. Everything after the network is in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selfnpo_core.decomposition import Decomposition, decompose, decompose_all, inner_products
from selfnpo_core.denoise import ddim_step
from selfnpo_core.errors import InputError
from selfnpo_core.guidance import NULL, guide
from selfnpo_core.prediction import Estimate, to_estimate
from selfnpo_core.weights.inspection import Negative, Strength, on_base, strength_of
from selfnpo_core.weights.npo_folder import Npo, Recommended

if TYPE_CHECKING:
    from selfnpo_core.models.backbone import LoadingBackbone

TRAJECTORIES, STEPS, BATCH = 24, 10, 4
MOSTLY = 0.5
"""The share of ‖Δ‖² from which on `sentence` calls all of Δ by one name."""


@dataclass(frozen=True, kw_only=True)
class Dissection:
    """by_timestep: (timestep, what Δ is there), from the noisiest; overall: of all of them together."""

    guidance_scale: float
    """Of the trajectories."""
    beta: float
    trajectories: int
    by_timestep: tuple[tuple[float, Decomposition], ...]
    overall: Decomposition

    @property
    def sentence(self) -> str:
        """What this negative is, in its overall shares of ‖Δ‖².

        r has half or more: its own direction. Else one knob alone fits half or more (the better of the two, if both
        do): mostly contrast, or a guidance scale in disguise. Else it takes both knobs together.
        """
        found = self.overall
        kappa, scale = f"κ {found.kappa:+.3f}", f"{found.effective_scale(self.guidance_scale):.2f}"
        if found.size == 0:
            return "nothing: the null branch does not change on these trajectories"
        if found.rest_share >= MOSTLY:
            return f"its own direction (r is {found.rest_share:.0%} of it: neither contrast nor guidance scale)"
        if max(found.contrast_share, found.scale_share) < MOSTLY:
            return f"contrast ({kappa}) and a guidance scale of {scale} together (r is {found.rest_share:.0%} of it)"
        if found.contrast_share >= found.scale_share:
            return f"mostly contrast ({kappa}, alone {found.contrast_share:.0%} of it)"
        asked = f"where {self.guidance_scale:g} is asked for"
        return (
            f"a guidance scale of {scale} in disguise, {asked} (k {found.k:+.3f}, alone {found.scale_share:.0%} of it)"
        )

    def as_facts(self) -> dict[str, Any]:
        """What `inspect --json` writes as `decomposition`."""
        return {
            "guidance_scale": self.guidance_scale,
            "beta": self.beta,
            "trajectories": self.trajectories,
            "by_timestep": [{"timestep": t, **self._facts(level)} for t, level in self.by_timestep],
            "overall": self._facts(self.overall),
            "sentence": self.sentence,
        }

    def _facts(self, level: Decomposition) -> dict[str, float]:
        return {**asdict(level), "effective_scale": level.effective_scale(self.guidance_scale)}


@torch.no_grad()
def measure(
    npo: Npo,
    backbone: "LoadingBackbone",
    prompts: Sequence[str],
    *,
    guidance_scale: float | None = None,
    beta: float | None = None,
    trajectories: int = TRAJECTORIES,
    steps: int = STEPS,
    seed: int = 0,
) -> tuple[Strength, Dissection]:
    """Strength (`inspection.measure_strength`) and what Δ is.

    prompts: evenly picked from. guidance_scale, beta: None is as the weights recommend their use, the middle of the
    range of guidance scales. Raises `InputError` for another base.
    """
    advice = npo.config.recommended if npo.config else Recommended()
    with on_base(npo, backbone, _picked(prompts, trajectories)) as negative:
        return strength_of(backbone, negative), dissect(
            backbone,
            negative,
            guidance_scale=sum(advice.guidance_scale) / 2 if guidance_scale is None else guidance_scale,
            beta=advice.beta if beta is None else beta,
            trajectories=trajectories,
            steps=steps,
            seed=seed,
        )


@torch.no_grad()
def dissect(
    backbone: "LoadingBackbone",
    negative: Negative,
    *,
    guidance_scale: float,
    beta: float = 1.0,
    trajectories: int = TRAJECTORIES,
    steps: int = STEPS,
    seed: int = 0,
) -> Dissection:
    """Of trajectories with the embedded prompts 0 … trajectories − 1, a few at a time: three forwards a step."""
    from tqdm import tqdm  # of the extra that `inspect` needs; the weights' floor does without

    if trajectories < 1:
        raise InputError(f"{trajectories} trajectories show nothing: take at least one")
    grid = backbone.schedule.grid(steps)
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(len(grid), 3, 3, dtype=torch.float64)
    places = trajectories * len(grid)
    with tqdm(total=places, desc="take apart", unit="place", leave=False, delay=2, mininterval=1) as bar:
        for first in range(0, trajectories, BATCH):
            prompt = torch.arange(first, min(first + BATCH, trajectories))
            x = torch.randn((len(prompt), *backbone.latent_shape), generator=generator)
            for n, products in enumerate(_along(backbone, negative, beta, grid, x, prompt, guidance_scale)):
                sums[n] += products
                bar.update(len(prompt))
    return Dissection(
        guidance_scale=guidance_scale,
        beta=beta,
        trajectories=trajectories,
        by_timestep=tuple((float(t), decompose(each)) for t, each in zip(grid, sums, strict=True)),
        overall=decompose_all(list(sums)),
    )


def _along(
    backbone: "LoadingBackbone", negative: Negative, beta: float, grid: Tensor, x: Tensor, prompt: Tensor, scale: float
) -> Iterator[Tensor]:
    """The `inner_products` at each place of plain guided trajectories from x: (B, *S), prompt: (B,)."""
    null = torch.full_like(prompt, NULL)
    for n, here in enumerate(grid):
        t = here.expand(len(prompt))
        positive, empty = _asked(backbone, x, t, prompt), _asked(backbone, x, t, null)
        with negative(beta):
            weak = _asked(backbone, x, t, null)
        yield inner_products(positive.x0, empty.x0, weak.x0)
        if n + 1 < len(grid):
            there = backbone.schedule.at(grid[n + 1].expand(len(prompt)), like=positive.x0)
            x = ddim_step(guide(empty, positive, scale), there).float()


def _asked(backbone: "LoadingBackbone", x_t: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
    """In float64, in host memory: not every device has it."""
    device = backbone.device
    output = backbone.predict(x_t.to(device), t.to(device), prompt.to(device))
    wide = x_t.double()
    return to_estimate(output.cpu().double(), wide, backbone.schedule.at(t, like=wide), backbone.prediction_type)


def _picked(prompts: Sequence[str], n: int) -> list[str]:
    """n of them, evenly spread; each more than once where there are fewer."""
    return [prompts[k * len(prompts) // n] for k in range(n)]
