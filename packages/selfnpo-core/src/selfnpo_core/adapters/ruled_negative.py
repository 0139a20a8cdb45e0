"""Negative weights, and around them the rule of guidance that asks them."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from selfnpo_core.adapters.guidance_rule import GuidanceRule
from selfnpo_core.adapters.negative_adapters import NegativeAdapters
from selfnpo_core.adapters.negative_delta import NegativeDelta
from selfnpo_core.adapters.negative_layers import NegativeLayers
from selfnpo_core.adapters.negative_rules import BetaByLevel, Switch, ThirdTerm
from selfnpo_core.adapters.rules import Rule, plain

if TYPE_CHECKING:
    from selfnpo_core.weights.npo_rule import NpoRule

Negative = NegativeAdapters | NegativeDelta | NegativeLayers


class RuledNegative:
    """`negative` weights with a rule of guidance around them. Made by `attach`; a context manager."""

    @classmethod
    def attach(cls, pipe: Any, negative: Negative, rule: Rule) -> RuledNegative:
        """Put the rule around weights that are attached. Where that fails, they are detached."""
        return cls(pipe, negative, rule)

    def __init__(self, pipe: Any, negative: Negative, rule: Rule) -> None:
        self.negative = negative
        with ExitStack() as undo:
            undo.callback(negative.detach)
            undo.enter_context(GuidanceRule.attach(pipe, rule))
            self._undo = undo.pop_all()

    def detach(self) -> None:
        """Leave the pipeline as it was found."""
        self._undo.close()

    def __enter__(self) -> RuledNegative:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def rule_around(rule: NpoRule) -> Rule | None:
    """What is put around the weights; None where they act alone."""
    around: Rule | None = None
    if rule.name == "third":
        assert rule.weight is not None
        around = ThirdTerm(weight=rule.weight)
    elif rule.name == "switch":
        assert rule.switch is not None
        around = Switch(switch=rule.switch)
    return BetaByLevel(knots=rule.beta_knots, rule=around or plain) if rule.beta_knots else around


def strengths(rule: NpoRule, beta: float) -> tuple[float, tuple[float, float]]:
    """(strength of the weights, what negative rows and all others get of it)."""
    if not rule.extrapolates:
        return beta, (1.0, 0.0)
    assert rule.weight is not None
    return 1.0, (-rule.weight if rule.name == "neon" else beta, -rule.weight)
