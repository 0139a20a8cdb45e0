"""The methods that are compared at equal cost: plain guidance, Self-NPO, Neon, and the rules that need no training.

A method has variants (its own settings) and guidance scales to be tried at. `equal_cost` makes cells of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from selfnpo_core.adapters import GuidanceRule
from selfnpo_core.adapters.autoguidance import autoguidance, load_earlier
from selfnpo_core.adapters.rules import GuidanceInterval, Perturbed, Projected, Rescaled, Rule, ZeroStar
from selfnpo_core.adapters.weakening import identity_attention, skipped_blocks
from selfnpo_core.errors import InputError
from selfnpo_core.experiments.arms import make_arm
from selfnpo_core.experiments.cells import Arm
from selfnpo_core.experiments.measure import Attach
from selfnpo_core.guidance import interval
from selfnpo_core.system.files import file_sha256
from selfnpo_core.weights.npo_rule import NpoRule
from selfnpo_core.worlds.world import Demo

Variant = Mapping[str, float]
"""A method's own settings, by name."""


@dataclass(frozen=True, kw_only=True)
class TrainedArms:
    """Arms whose weights are trained in the folder `work` when they are asked for.

    earlier: folder of an earlier state of the demo's model, for autoguidance.
    """

    demo: Demo
    work: Path
    seed: int
    earlier: Path | None = None

    def trained(self, arm: str, **settings: Any) -> Arm:
        """An arm with weights that are trained now, unless another process is at it, or has done it."""
        self.work.mkdir(parents=True, exist_ok=True)
        with FileLock(self.work / "training.lock"):
            return make_arm(self.demo, arm, self.seed, self.work / "runs", **settings)


Make = Callable[[TrainedArms, Variant], tuple[Attach, Mapping[str, Any]]]
"""(arms, variant) → what is put on the pipeline, and what the cell says of it."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """title: in tables and plots; what: its settings' meaning and source, for the page.

    untrained: the method that it is without the weights it trains; None where it trains none.
    """

    title: str
    what: str
    make: Make
    scales: Sequence[float]
    variants: Sequence[Variant] = field(default=({},))
    untrained: str | None = None


def _trained(arm: str) -> Make:
    def make(arms: TrainedArms, variant: Variant) -> tuple[Attach, Mapping[str, Any]]:
        made = arms.trained(arm, **({} if arm == "cfg" else variant))
        return made.attach, made.note

    return make


def _used(rule: Callable[[Variant], NpoRule], **use: Any) -> Make:
    """Self-NPO's weights, used by another rule than that of their recipe."""

    def make(arms: TrainedArms, variant: Variant) -> tuple[Attach, Mapping[str, Any]]:
        made = arms.trained("npo", beta=variant["beta"], rule=rule(variant), **use)
        return made.attach, made.note

    return make


def _ruled(rule: Callable[[Demo, Variant], Rule], negative: bool = False) -> Make:
    """The rule, around Self-NPO's negative weights where `negative`."""

    def make(arms: TrainedArms, variant: Variant) -> tuple[Attach, Mapping[str, Any]]:
        put = rule(arms.demo, variant)
        inner = arms.trained("npo", beta=variant["beta"]) if negative else None

        @contextmanager
        def attach(pipe: Any) -> Iterator[None]:
            with ExitStack() as stack:
                if inner is not None:
                    stack.enter_context(inner.attach(pipe))
                stack.enter_context(GuidanceRule.attach(pipe, put))
                yield

        return attach, {} if inner is None else inner.note

    return make


def _autoguided(arms: TrainedArms, _variant: Variant) -> tuple[Attach, Mapping[str, Any]]:
    folder = arms.earlier
    if folder is None:
        raise InputError("autoguidance wants an earlier state of the model: --earlier DIR, or leave it out")
    weights = {path.parent.name: file_sha256(path) for path in sorted(folder.glob("*/*.safetensors"))}

    load = cache(partial(load_earlier, folder=folder))

    @contextmanager
    def attach(pipe: Any) -> Iterator[None]:
        with autoguidance(pipe, load(pipe)):
            yield

    return attach, {"earlier_sha256": weights}


def _interval(_demo: Demo, variant: Variant) -> Rule:
    return GuidanceInterval(low=variant["low"], high=variant["high"])


def _apg(_demo: Demo, variant: Variant) -> Rule:
    return Projected(eta=variant["eta"], norm=variant["norm"], momentum=variant["momentum"])


def _third(variant: Variant) -> NpoRule:
    return NpoRule(name="third", weight=variant["weight"])


def _switch(variant: Variant) -> NpoRule:
    return NpoRule(name="switch", switch=variant["switch"])


def _neon_both(variant: Variant) -> NpoRule:
    return NpoRule(name="neon_both", weight=variant["weight"])


def _beta_interval(variant: Variant) -> NpoRule:
    return NpoRule(beta_knots=interval(variant["low"], variant["high"]))


PAPERS_INTERVAL = {"low": 0.28, "high": 5.42}
PAPERS_APG = {"eta": 0.0, "norm": 0.0586, "momentum": -0.5}
BETA, ALL = {"beta": 0.5}, {"beta": 1.0}

METHODS: Mapping[str, Method] = {
    "cfg": Method(
        title="plain guidance",
        what="classifier-free guidance, 2207.12598; scale 1 is none, of one row a step",
        make=_trained("cfg"),
        scales=(1.0, 1.5, 2.0, 3.0, 5.0, 8.0),
    ),
    "npo": Method(
        title="Self-NPO",
        what="2505.11777; beta: strength of the negative weights",
        make=_trained("npo"),
        scales=(1.5, 2.0, 3.0, 5.0),
        variants=({"beta": 0.25}, BETA, {"beta": 1.0}),
        untrained="cfg",
    ),
    "neon": Method(
        title="Neon",
        what="2510.03597, with Self-NPO's offset; strength: how much of it is taken off the model",
        make=_trained("neon"),
        scales=(1.0, 1.5, 3.0),
        variants=({"strength": 0.02}, {"strength": 0.1}),
        untrained="cfg",
    ),
    "zero_star": Method(
        title="CFG-Zero*",
        what="2503.18886, of the velocity ε̂ − x̂0; first: steps of zero velocity, which run no row",
        make=_ruled(lambda _, variant: ZeroStar(first=int(variant["first"]))),
        scales=(1.5, 3.0, 5.0),
        variants=({"first": 0}, {"first": 1}),
    ),
    "apg": Method(
        title="APG",
        what="2410.02416, of x̂0; norm: the longest update by the root of its elements (the paper's 15 for SDXL)",
        make=_ruled(_apg),
        scales=(1.5, 3.0, 5.0, 8.0),
        variants=(PAPERS_APG,),
    ),
    "rescale": Method(
        title="guidance rescaling",
        what="2305.08891; share: of the rescaled prediction",
        make=_ruled(lambda _, variant: Rescaled(share=variant["share"])),
        scales=(1.5, 3.0, 5.0, 8.0),
        variants=({"share": 0.7},),
    ),
    "interval": Method(
        title="guidance interval",
        what="2404.07724; guidance where low < σ/α ≤ high, elsewhere one row a step",
        make=_ruled(_interval),
        scales=(1.5, 3.0, 5.0, 8.0),
        variants=(PAPERS_INTERVAL,),
    ),
    "pag": Method(
        title="PAG",
        what="2403.17377; strength: of the step away from identity attention, three rows a step",
        make=_ruled(
            lambda demo, variant: Perturbed(weaken=identity_attention(demo.perturbed), strength=variant["strength"])
        ),
        scales=(1.5, 3.0),
        variants=({"strength": 0.5}, {"strength": 3.0}),
    ),
    "slg": Method(
        title="SLG",
        what="skip-layer guidance of SD3.5; away from the model without some blocks, where start < step/steps < stop",
        make=_ruled(lambda demo, variant: Perturbed(weaken=skipped_blocks(demo.skipped), **variant)),  # type: ignore[arg-type]
        scales=(1.5, 3.0),
        variants=({"strength": 2.8, "start": 0.01, "stop": 0.2},),
    ),
    "autoguidance": Method(
        title="autoguidance",
        what="2406.02507; away from an earlier state of the model that is asked with the prompt",
        make=_autoguided,
        scales=(1.5, 2.0, 3.0),
    ),
    "npo_prompt": Method(
        title="Self-NPO, own prompt",
        what="the negative weights are asked with the prompt, as in 2406.02507",
        make=_used(lambda _: NpoRule(), condition="prompt"),
        scales=(1.5, 2.0, 3.0),
        variants=(BETA, {"beta": 1.0}),
        untrained="cfg",
    ),
    "npo_third": Method(
        title="Self-NPO, third term",
        what="weight: of the step from the negative weights to the base, both with the prompt; three rows a step",
        make=_used(_third),
        scales=(1.5, 2.0, 3.0),
        variants=({**ALL, "weight": 0.5}, {**ALL, "weight": 1.0}),
        untrained="cfg",
    ),
    "npo_switch": Method(
        title="Self-NPO, switched",
        what="the base where σ/α > switch; below it the negative weights, asked with the prompt",
        make=_used(_switch),
        scales=(1.5, 2.0, 3.0),
        variants=({**ALL, "switch": 1.0}, {**ALL, "switch": 3.0}),
        untrained="cfg",
    ),
    "npo_neon_both": Method(
        title="Self-NPO and Neon",
        what="2510.03597 on the positive branch, weight: how much is taken off; Self-NPO on the negative one",
        make=_used(_neon_both),
        scales=(1.5, 2.0, 3.0),
        variants=({**BETA, "weight": 0.1}, {**BETA, "weight": 0.5}),
        untrained="cfg",
    ),
    "npo_interval_beta": Method(
        title="Self-NPO, beta in an interval",
        what="the negative weights act where low < σ/α ≤ high, the base elsewhere",
        make=_used(_beta_interval),
        scales=(1.5, 2.0, 3.0),
        variants=({**ALL, **PAPERS_INTERVAL},),
        untrained="cfg",
    ),
    "npo_interval": Method(
        title="Self-NPO in an interval",
        what="both of these",
        make=_ruled(_interval, negative=True),
        scales=(1.5, 3.0, 5.0),
        variants=({**BETA, **PAPERS_INTERVAL},),
        untrained="interval",
    ),
    "npo_apg": Method(
        title="Self-NPO with APG",
        what="both of these",
        make=_ruled(_apg, negative=True),
        scales=(3.0, 5.0, 8.0),
        variants=({**BETA, **PAPERS_APG},),
        untrained="apg",
    ),
}
