"""By which rule of guidance negative weights δ are used, as npo_config.json and the command line say it.

ε(c), ε(∅): the base under the prompt and the null, or negative, prompt; ε₋: θ + β·δ.

    two_branch   ε₋ is the negative branch, under the null prompt or under the prompt     Self-NPO, 2505.11777
    third        guidance by the base, and weight·(ε(c) − ε₋(c)) added                    three rows a sample
    switch       guidance by the base where σ/α > switch; below it the negative branch is ε₋(c)   2406.02507
    neon         θ − weight·δ on both branches, and where guidance is off                 Neon, 2510.03597
    neon_both    θ − weight·δ on the positive branch, ε₋ on the negative one
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from selfnpo_core.errors import InputError
from selfnpo_core.guidance import check_knots

Finite = Annotated[float, Field(allow_inf_nan=False)]
RuleName = Literal["two_branch", "third", "switch", "neon", "neon_both"]
Condition = Literal["null", "prompt"]

_NUMBER: Mapping[str, str] = {"third": "weight", "neon": "weight", "neon_both": "weight", "switch": "switch"}
"""The one setting of each rule that has one."""


class NpoRule(BaseModel):
    """A rule and its settings.

    weight: of rules third, neon and neon_both; switch: σ/α, of rule switch.
    beta_knots: β as a function of the noise level, β·share(σ/α), as pairs (σ/α, share): linear in log σ/α between them
        and constant outside; two at one σ/α are a jump. Empty: β everywhere. Of rules two_branch, third and switch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RuleName = "two_branch"
    weight: Finite | None = None
    switch: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    beta_knots: tuple[tuple[float, float], ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> NpoRule:
        for key in ("weight", "switch"):
            needed, given = _NUMBER.get(self.name) == key, getattr(self, key) is not None
            if needed and not given:
                raise ValueError(f"rule {self.name} needs its {key}: give one")
            if given and not needed:
                raise ValueError(f"rule {self.name} has no {key}: leave it out")
        if self.beta_knots:
            if self.extrapolates:
                raise ValueError(f"rule {self.name} has one strength at all noise levels: leave beta_knots out")
            check_knots(self.beta_knots)
        return self

    @property
    def extrapolates(self) -> bool:
        """Whether the positive branch has other weights than the base's."""
        return self.name in ("neon", "neon_both")

    @property
    def uses_beta(self) -> bool:
        return self.name != "neon"

    def condition(self, given: Condition | None, otherwise: Condition) -> Condition:
        """What the negative branch is asked: as given, else `otherwise`, if the rule leaves that open."""
        if self.name in ("two_branch", "neon_both"):
            return given or otherwise
        if given not in (None, "null"):
            raise InputError(f"rule {self.name} says itself what is asked: leave the negative condition '{given}' out")
        return "null"

    def check_alpha(self, alpha: float) -> None:
        """A share of η is given along with β, once."""
        if alpha != 1 and (self.extrapolates or self.beta_knots):
            what = "beta_knots" if self.beta_knots else f"rule {self.name}"
            raise InputError(f"alpha is {alpha:g}, and {what} knows no share of a preference: leave alpha at 1")

    def __str__(self) -> str:
        """In one line, from which it can be given again."""
        number = _NUMBER.get(self.name)
        parts = [self.name] if number is None else [self.name, f"{number} {getattr(self, number):g}"]
        return ", ".join([*parts, f"beta_knots {write_knots(self)}"] if self.beta_knots else parts)


def build_rule(values: Mapping[str, Any]) -> NpoRule:
    """A rule from its settings; what is wrong with them becomes one `InputError`."""
    try:
        return NpoRule.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first.get("ctx", {}).get("error") or f"{first['loc'][0]} is {first['input']!r}: {first['msg']}"
        raise InputError(str(reason)) from None


def write_knots(rule: NpoRule) -> str:
    return ",".join(f"{level:g}:{share:g}" for level, share in rule.beta_knots)


def read_knots(text: str) -> tuple[tuple[float, float], ...]:
    """What `write_knots` writes; "none" is no knots."""
    if text == "none":
        return ()
    try:
        pairs = [knot.split(":") for knot in text.split(",")]
        return tuple((float(level), float(share)) for level, share in pairs)
    except ValueError:
        raise InputError(f"knots '{text}' are unreadable: give LEVEL:SHARE,…, such as 0.3:0,0.3:1,5:1,5:0") from None
