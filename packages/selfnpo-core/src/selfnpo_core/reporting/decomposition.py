"""What `inspect --keep` left in a run: the change of its negative weights taken apart, by noise level."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from selfnpo_core.errors import InputError
from selfnpo_core.reporting.figures import read_json_object
from selfnpo_core.reporting.shown import inline_svg, style
from selfnpo_core.system.extras import pyplot
from selfnpo_core.system.files import file_sha256

log = logging.getLogger(__name__)
DECOMPOSITION = "decomposition.json"
"""In a run folder."""


class Level(BaseModel):
    """`selfnpo_core.decomposition.Decomposition` at one timestep, as far as it is shown."""

    model_config = ConfigDict(frozen=True)

    timestep: float
    size: float
    kappa: float
    k: float
    rest_share: float


class KeptDecomposition(BaseModel):
    """The file, as far as it is shown."""

    model_config = ConfigDict(frozen=True)

    npo_sha256: str
    guidance_scale: float
    beta: float
    trajectories: int
    by_timestep: tuple[Level, ...]
    sentence: str

    @property
    def told(self) -> str:
        return (
            f"What the weights change in the null branch is {self.sentence}. On {self.trajectories} guided "
            f"trajectories of the base, guidance scale {self.guidance_scale:g}, beta {self.beta:g}."
        )

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Head and rows, from the noisiest."""
        rows = [
            (f"{v.timestep:g}", f"{v.size:.1%}", f"{v.kappa:+.3f}", f"{v.k:+.3f}", f"{v.rest_share:.0%}")
            for v in self.by_timestep
        ]
        return ("timestep", "‖Δ‖/‖d‖", "κ, contrast", "k, guidance scale", "r, share of ‖Δ‖²"), rows

    def plots(self) -> list[str]:
        """Its size, its two knobs, and what they leave, over timesteps, as <svg> elements."""
        levels = self.by_timestep
        return [
            self._plot("size", "‖Δ‖/‖d‖, %", {"": [100 * level.size for level in levels]}),
            self._plot(
                "knobs", "κ and k", {"κ, contrast": [v.kappa for v in levels], "k, scale": [v.k for v in levels]}
            ),
            self._plot("rest", "r, % of ‖Δ‖²", {"": [100 * level.rest_share for level in levels]}),
        ]

    def _plot(self, name: str, label: str, lines: Mapping[str, Sequence[float]]) -> str:
        plt = pyplot()
        with plt.rc_context(style()):
            figure, axes = plt.subplots(figsize=(4.6, 2.7), layout="constrained")
            for (legend, values), colour in zip(lines.items(), ("#5b8fd6", "#c2573f"), strict=False):
                axes.plot(
                    [level.timestep for level in self.by_timestep], values, color=colour, marker=".", label=legend
                )
            if len(lines) > 1:
                axes.axhline(0, color="grey", linewidth=0.5)
                axes.legend(fontsize=8, frameon=False)
            else:
                axes.set_ylim(bottom=0)
            axes.set_title(label, fontsize=10, loc="left")
            axes.set_xlabel("timestep (noise to the right)", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.2)
            svg = inline_svg(figure, name)
            plt.close(figure)
        return svg


def kept_decomposition(run: Path, npo: Path | None) -> KeptDecomposition | None:
    """What is kept of these very weights, if anything. Raises `InputError` for a damaged file."""
    file = run / DECOMPOSITION
    if npo is None or not file.is_file():
        return None
    try:
        found = KeptDecomposition.model_validate(read_json_object(file))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{file} is damaged ({place}: {first['msg']}): have `inspect --keep` write it anew") from None
    if found.npo_sha256 != file_sha256(npo):
        log.warning("left out: %s is not of the weights that are now in %s", file, run)
        return None
    return found
