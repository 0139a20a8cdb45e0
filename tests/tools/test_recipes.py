"""Every recipe of the repository resolves against its family's presets."""

from pathlib import Path

import pytest

from selfnpo_core.training import resolve_recipe
from selfnpo_image.models import KNOWN
from selfnpo_image.recipes import presets_for

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_resolves_for_a_known_model(path):
    model = resolve_recipe({}, path).model
    assert model in KNOWN
    assert resolve_recipe(presets_for(model), path).model == model
