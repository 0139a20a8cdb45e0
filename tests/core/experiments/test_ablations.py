"""One setting of a recipe changed at a time: which keys that is."""

from types import SimpleNamespace

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.experiments.ablations import CHANGES, RECIPE, changes_of, possible

LORA = {
    "samples": 2000,
    "steps": 600,
    "rank": 16,
    "targets": "all",
    "average": 0.15,
    "sample_guidance": 2.0,
    "sample_grid_steps": 10,
}
DEMO = SimpleNamespace(kind="lora", presets={"lora": LORA, "full": {"samples": 500, "steps": 100, "uses": 4}})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (RECIPE, {}),
        ("guidance-3", {"sample_guidance": 3.0}),
        ("half-the-samples", {"samples": 1000, "uses": 20}),
        ("twice-the-samples", {"samples": 4000, "steps": 1200}),
        ("twice-the-samples+drawn-in-5", {"samples": 4000, "steps": 1200, "sample_grid_steps": 5}),
        ("all-weights", {"train": "full"}),
        ("all-weights+twice-the-samples", {"train": "full", "samples": 1000, "steps": 200}),
    ],
)
def test_a_change_is_of_the_demos_own_recipe(name, changes):
    assert changes_of(DEMO, name) == {"train": "lora", **changes}


@pytest.mark.parametrize(
    ("name", "told"),
    [("magic", "no change 'magic'"), ("guidance-3+magic", "no change 'magic'"), ("lora", "is this demo's recipe")],
)
def test_what_changes_nothing_is_refused(name, told):
    with pytest.raises(InputError, match=told):
        changes_of(DEMO, name)


def test_all_changes_but_those_that_are_the_recipe_are_possible():
    assert possible(DEMO) == [name for name in CHANGES if name != "lora"]
    assert possible(DEMO)[0] == RECIPE
