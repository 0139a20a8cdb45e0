"""A rule as it is written down: what fits together, and what comes back."""

import json
import math

import pytest

from selfnpo_core import InputError, NpoRule
from selfnpo_core.weights.npo_folder import NpoConfig, Recommended
from selfnpo_core.weights.npo_rule import build_rule, read_knots, write_knots

KNOTS = ((0.28, 0.0), (0.28, 1.0), (5.42, 0.5))
RULES = [
    NpoRule(),
    NpoRule(name="third", weight=0.5),
    NpoRule(name="switch", switch=1.5, beta_knots=KNOTS),
    NpoRule(name="neon", weight=-0.25),
    NpoRule(name="neon_both", weight=0.5),
]
MADE = {"family": "toy", "base_model": "toy/base", "base_hash": "abc", "train": "lora", "rank": 4, "recipe": {}}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_is_written_comes_back(rule: NpoRule) -> None:
    config = NpoConfig(**MADE, recommended=Recommended(rule=rule))
    assert NpoConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json", by_alias=True)))) == config
    assert read_knots(write_knots(rule) or "none") == rule.beta_knots


def test_older_files_have_two_branches_and_one_beta() -> None:
    old = NpoConfig.model_validate({**MADE, "schema": 1, "recommended": {"beta": 0.5, "guidance_scale": [2.0, 4.0]}})
    assert old.recommended.rule == NpoRule(name="two_branch", weight=None, switch=None, beta_knots=())


def test_a_rule_in_words() -> None:
    assert [str(rule) for rule in RULES] == [
        "two_branch",
        "third, weight 0.5",
        "switch, switch 1.5, beta_knots 0.28:0,0.28:1,5.42:0.5",
        "neon, weight -0.25",
        "neon_both, weight 0.5",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "third"}, "rule third needs its weight"),
        ({"name": "switch", "weight": 1.0, "switch": 1.0}, "rule switch has no weight"),
        ({"name": "switch"}, "rule switch needs its switch"),
        ({"name": "switch", "switch": 0.0}, "switch is 0.0"),
        ({"weight": 1.0}, "rule two_branch has no weight"),
        ({"name": "third", "weight": math.inf}, "weight is inf"),
        ({"name": "neon", "weight": 1.0, "beta_knots": KNOTS}, "one strength at all noise levels"),
        ({"beta_knots": ((2.0, 1.0), (1.0, 0.0))}, "must not fall"),
        ({"beta_knots": ((0.0, 1.0),)}, "σ/α > 0"),
        ({"name": "fourth"}, "name is 'fourth'"),
    ],
)
def test_what_does_not_fit_together(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build_rule(given)
    assert "\n" not in str(error.value)


def test_knots_that_cannot_be_read() -> None:
    for text in ("1", "1:2:3", "a:b", ""):
        with pytest.raises(InputError, match=r"such as 0\.3:0"):
            read_knots(text)


def test_what_else_must_agree_with_a_rule() -> None:
    assert NpoRule().condition(None, "prompt") == "prompt"
    assert RULES[4].condition("null", "prompt") == "null"
    assert RULES[1].condition(None, "prompt") == "null"
    with pytest.raises(InputError, match="says itself what is asked"):
        RULES[1].condition("prompt", "null")
    for rule in (RULES[2], RULES[3], RULES[4]):
        rule.check_alpha(1.0)
        with pytest.raises(InputError, match="leave alpha at 1"):
            rule.check_alpha(0.5)
    RULES[1].check_alpha(0.5)
