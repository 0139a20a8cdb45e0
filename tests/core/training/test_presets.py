"""Presets of a family, for a base of another width."""

import pytest

from selfnpo_core.models.base import Widths
from selfnpo_core.training import resolve_recipe
from selfnpo_core.training.presets import for_width, why_rate
from selfnpo_core.training.resolving import given_keys

PRESETS = {"lora": {"learning_rate": 1e-4, "rank": 16}, "full": {"learning_rate": 5e-6}}


@pytest.mark.parametrize(
    ("width", "lora", "full"),
    [(32, 1e-3, 5e-5), (64, 5e-4, 2.5e-5), (96, 3.33e-4, 1.67e-5), (320, 1e-4, 5e-6), (640, 5e-5, 2.5e-6)],
)
def test_the_learning_rate_falls_as_the_width_grows(width, lora, full):
    scaled = for_width(PRESETS, Widths(family=320, base=width))
    assert scaled == {"lora": {"learning_rate": lora, "rank": 16}, "full": {"learning_rate": full}}


def test_by_no_more_than_ten_either_way():
    assert for_width(PRESETS, Widths(family=320, base=8))["lora"]["learning_rate"] == 1e-3
    assert for_width(PRESETS, Widths(family=320, base=32000))["lora"]["learning_rate"] == 1e-5


def test_what_is_not_known_is_not_scaled():
    assert for_width(PRESETS, None) is PRESETS
    assert for_width(PRESETS, Widths(family=320, base=320)) is PRESETS


@pytest.mark.parametrize(
    ("width", "overrides", "line"),
    [
        (32, (), "learning rate 0.001: the family's 0.0001 at width 320, for a network 32 wide"),
        (96, ["train=full"], "learning rate 1.67e-05: the family's 5e-06 at width 320, for a network 96 wide"),
        (8, (), "learning rate 0.001: the family's 0.0001 at width 320, for a network 8 wide, 10 times being the most"),
        (320, (), None),
        (32, ["learning_rate=2e-4"], None),
        (32, ["learning_rate=1e-3"], None),
        (32, {"learning_rate": 1e-3}, None),
    ],
)
def test_one_line_says_why(width, overrides, line):
    widths = Widths(family=320, base=width)
    presets = for_width(PRESETS, widths)
    assert why_rate(resolve_recipe(presets, None, overrides), given_keys(None, overrides), widths) == line
    assert why_rate(resolve_recipe(PRESETS), (), None) is None


def test_a_rate_that_a_file_gives_is_nobody_elses(tmp_path):
    file, widths = tmp_path / "recipe.yaml", Widths(family=320, base=32)
    presets = for_width(PRESETS, widths)
    for text, speaks in (("rank: 8\n", True), ("learning_rate: 0.001\n", False)):
        file.write_text(text)
        recipe = resolve_recipe(presets, file)
        assert recipe.learning_rate == 1e-3
        assert (why_rate(recipe, given_keys(file, ()), widths) is not None) == speaks
