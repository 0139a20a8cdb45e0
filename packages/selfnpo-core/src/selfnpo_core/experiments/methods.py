"""The methods that are compared at equal cost: plain guidance, Self-NPO, Neon, and the rules that need no training.

A method has variants (its own settings) and guidance scales to be tried at. `equal_cost` makes cells of them. One whose
trained weights are on the null branch has controls too (`selfnpo_core.experiments.controls`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from selfnpo_core.adapters import GuidanceRule
from selfnpo_core.adapters.autoguidance import autoguidance, load_earlier
from selfnpo_core.adapters.null_renoised import NullRenoised
from selfnpo_core.adapters.rules import GuidanceInterval, Perturbed, Projected, Rescaled, Rule, ZeroStar
from selfnpo_core.adapters.weakening import identity_attention, skipped_blocks
from selfnpo_core.errors import InputError
from selfnpo_core.experiments.arms import ALPHAS, make_arm, train_arm
from selfnpo_core.experiments.cells import Arm
from selfnpo_core.experiments.controls import EQUAL, WEIGHTS, EqualScale, control_rule
from selfnpo_core.experiments.measure import Attach
from selfnpo_core.guidance import interval
from selfnpo_core.system.files import file_sha256
from selfnpo_core.weights.dissection import measure
from selfnpo_core.weights.npo_folder import load_npo
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
        with self._lock():
            return make_arm(self.demo, arm, self.seed, self.work / "runs", **settings)

    def run(self, arm: str) -> Path:
        """The run folder of a trained arm."""
        with self._lock():
            return train_arm(self.demo, arm, self.seed, self.work / "runs")

    def _lock(self) -> AbstractContextManager[Any]:
        self.work.mkdir(parents=True, exist_ok=True)
        return FileLock(self.work / "training.lock")


Make = Callable[[TrainedArms, Variant], tuple[Attach, Mapping[str, Any]]]
"""(arms, variant) → what is put on the pipeline, and what the cell says of it."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """title: in tables and plots; what: its settings' meaning and source, for the page.

    untrained: the method that it is without the weights it trains; None where it trains none.
    weights: the trained arm that is on its null branch, and can be controlled for; None where there is none.
    base: the plain guidance that it is compared with: of the base, or of the preference-tuned model.
    """

    title: str
    what: str
    make: Make
    scales: Sequence[float]
    variants: Sequence[Variant] = field(default=({},))
    untrained: str | None = None
    weights: str | None = None
    base: str = "cfg"


def make_control(
    arms: TrainedArms, method: str, variant: Variant, control: str, *, scale: float, steps: int
) -> tuple[Attach, Mapping[str, Any]]:
    """A control of a method's weights, at its variant's β. scale, steps: of the cell, for the equal scale."""
    weights, beta = METHODS[method].weights, variant["beta"]
    if weights is None:
        raise InputError(f"{method} has no weights on the null branch alone: nothing to control for")
    if control in WEIGHTS:
        made = arms.trained(WEIGHTS[control], weights=weights, beta=beta)
        return made.attach, made.note
    inner = arms.trained(weights, beta=beta)
    if control != EQUAL:
        return _around(control_rule(control), inner), inner.note
    npo = load_npo(arms.run(weights))
    captions = arms.demo.captions()
    _, found = measure(npo, arms.demo.backbone(), captions, guidance_scale=scale, beta=beta, steps=steps)
    equal = {"k": found.overall.k, "effective_scale": found.overall.effective_scale(scale)}
    return _around(EqualScale(k=equal["k"])), {**inner.note, **equal}


def available(earlier: Path | None) -> list[str]:
    """The methods that can be had on the demo's own base."""
    return [name for name, method in METHODS.items() if method.base == "cfg" and (earlier or name != "autoguidance")]


def _around(rule: Rule, inner: Arm | None = None) -> Attach:
    """A rule put on a pipeline, around an arm's weights if there is one."""

    @contextmanager
    def attach(pipe: Any) -> Iterator[None]:
        with ExitStack() as stack:
            if inner is not None:
                stack.enter_context(inner.attach(pipe))
            stack.enter_context(GuidanceRule.attach(pipe, rule))
            yield

    return attach


def _trained(arm: str, **of: str) -> Make:
    """of: more of `make_arm`'s settings."""

    def make(arms: TrainedArms, variant: Variant) -> tuple[Attach, Mapping[str, Any]]:
        made = arms.trained(arm, **of, **variant)
        return made.attach, made.note

    return make


def _used(rule: Callable[[Variant], NpoRule], **use: Any) -> Make:
    """Self-NPO's weights, used by another rule than that of their recipe."""

    def make(arms: TrainedArms, variant: Variant) -> tuple[Attach, Mapping[str, Any]]:
        made = arms.trained("ours", beta=variant["beta"], rule=rule(variant), **use)
        return made.attach, made.note

    return make


def _ruled(rule: Callable[[Demo, Variant], Rule], negative: str | None = None) -> Make:
    """The rule, around the negative weights of a trained arm if one is named."""

    def make(arms: TrainedArms, variant: Variant) -> tuple[Attach, Mapping[str, Any]]:
        inner = None if negative is None else arms.trained(negative, beta=variant["beta"])
        return _around(rule(arms.demo, variant), inner), {} if inner is None else inner.note

    return make


def _renoised(_arms: TrainedArms, variant: Variant) -> tuple[Attach, Mapping[str, Any]]:
    @contextmanager
    def attach(pipe: Any) -> Iterator[None]:
        with GuidanceRule.attach(pipe, NullRenoised(share=variant["lambda"], scheduler=pipe.scheduler)):
            yield

    return attach, {}


def _tuned(arms: TrainedArms, variant: Variant) -> tuple[Attach, Mapping[str, Any]]:
    arm = {alpha: name for name, alpha in ALPHAS.items()}[variant["alpha"]]
    made = arms.trained(arm, weights="ours", beta=variant["beta"])
    return made.attach, made.note


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
BETA, WHOLE = {"beta": 0.5}, {"beta": 1.0}

METHODS: Mapping[str, Method] = {
    "cfg": Method(
        title="plain guidance",
        what="classifier-free guidance, 2207.12598; scale 1 is none, of one row a step",
        make=_trained("cfg"),
        scales=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 8.0),
    ),
    "paper": Method(
        title="TDFT",
        what="2505.11777, the first recipe: a pool at w = −1, pseudo-Huber; beta: strength of the negative weights",
        make=_trained("paper"),
        scales=(1.5, 2.0, 2.5, 3.0, 5.0),
        variants=(BETA, WHOLE),
        untrained="cfg",
    ),
    "ours": Method(
        title="Self-NPO",
        what="own finished samples of scale 2, the diffusion loss under the null prompt alone; beta: strength",
        make=_trained("ours"),
        scales=(1.5, 2.0, 2.5, 3.0, 4.0, 5.0),
        variants=(BETA, WHOLE),
        untrained="cfg",
        weights="ours",
    ),
    "sims": Method(
        title="SIMS",
        what="2408.16333: own samples without guidance, trained and asked with the prompt; beta: strength",
        make=_trained("sims"),
        scales=(1.5, 2.0, 3.0, 5.0),
        variants=(BETA, WHOLE),
        untrained="cfg",
    ),
    "neon": Method(
        title="Neon",
        what="2510.03597: own samples of scale 2, trained with the prompt; strength: how much is taken off the model",
        make=_trained("neon", weights="prompted"),
        scales=(1.0, 1.5, 2.0, 3.0),
        variants=({"strength": 0.25}, {"strength": 0.5}),
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
    "plus_plus": Method(
        title="CFG++",
        what="2406.08070, exact under DDIM; lambda: its own scale, the guidance scale turns guidance on and no more",
        make=_renoised,
        scales=(2.0,),
        variants=tuple({"lambda": share} for share in (0.1, 0.2, 0.4, 0.6, 0.8)),
    ),
    "autoguidance": Method(
        title="autoguidance",
        what="2406.02507; away from an earlier state of the model that is asked with the prompt",
        make=_autoguided,
        scales=(1.5, 2.0, 3.0),
    ),
    "ours_prompt": Method(
        title="Self-NPO, own prompt",
        what="the negative weights are asked with the prompt, as in 2406.02507",
        make=_used(lambda _: NpoRule(), condition="prompt"),
        scales=(1.5, 2.0, 3.0),
        variants=(BETA, WHOLE),
        untrained="cfg",
    ),
    "ours_third": Method(
        title="Self-NPO, third term",
        what="weight: of the step from the negative weights to the base, both with the prompt; three rows a step",
        make=_used(_third),
        scales=(1.5, 2.0, 3.0),
        variants=({**WHOLE, "weight": 0.5}, {**WHOLE, "weight": 1.0}),
        untrained="cfg",
    ),
    "ours_switch": Method(
        title="Self-NPO, switched",
        what="the base where σ/α > switch; below it the negative weights, asked with the prompt",
        make=_used(_switch),
        scales=(1.5, 2.0, 3.0),
        variants=({**WHOLE, "switch": 1.0}, {**WHOLE, "switch": 3.0}),
        untrained="cfg",
    ),
    "ours_neon_both": Method(
        title="Self-NPO and Neon",
        what="2510.03597 on the positive branch, weight: how much is taken off; Self-NPO on the negative one",
        make=_used(_neon_both),
        scales=(1.5, 2.0, 3.0),
        variants=({**BETA, "weight": 0.1}, {**BETA, "weight": 0.5}),
        untrained="cfg",
    ),
    "ours_interval_beta": Method(
        title="Self-NPO, beta in an interval",
        what="the negative weights act where low < σ/α ≤ high, the base elsewhere",
        make=_used(_beta_interval),
        scales=(1.5, 2.0, 3.0),
        variants=({**WHOLE, **PAPERS_INTERVAL},),
        untrained="cfg",
    ),
    "ours_interval": Method(
        title="Self-NPO in an interval",
        what="both of these",
        make=_ruled(_interval, negative="ours"),
        scales=(1.5, 3.0, 5.0),
        variants=({**WHOLE, **PAPERS_INTERVAL},),
        untrained="interval",
    ),
    "ours_apg": Method(
        title="Self-NPO with APG",
        what="both of these",
        make=_ruled(_apg, negative="ours"),
        scales=(3.0, 5.0, 8.0),
        variants=({**WHOLE, **PAPERS_APG},),
        untrained="apg",
    ),
    "tuned": Method(
        title="preference-tuned",
        what="the demo's preference-tuned LoRA η on both branches",
        make=_trained("tuned"),
        scales=(1.5, 2.0, 2.5, 3.0, 5.0),
        base="tuned",
    ),
    "tuned_ours": Method(
        title="preference-tuned with Self-NPO",
        what="α·η + β·δ on the negative branch, δ of Self-NPO on the base",
        make=_tuned,
        scales=(1.5, 2.0, 2.5, 3.0, 5.0),
        variants=({"alpha": 0.0, **WHOLE}, {"alpha": 1.0, **WHOLE}),
        untrained="tuned",
        base="tuned",
    ),
}
