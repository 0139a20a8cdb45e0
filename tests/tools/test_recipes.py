"""Every recipe of the repository resolves against its family's presets, and needs what it says."""

import re
from pathlib import Path

import pytest

from selfnpo_core.commands.family import AnyFamily
from selfnpo_core.commands.train import base_dtype
from selfnpo_core.system.devices import DTYPES
from selfnpo_core.training import dry_run, resolve_recipe
from selfnpo_core.training.accelerators import check_engine
from selfnpo_core.training.presets import PAPER, SAMPLED
from selfnpo_core.training.resolving import model_of
from selfnpo_image.family import IMAGE
from selfnpo_video.family import VIDEO

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
PLACES = ("one GPU", "one node", "several nodes")
SIMULATED = ("sd15-full", "cogvideox-2b-zero3")  # in every run; the rest takes minutes


def family_of(model: str) -> AnyFamily:
    return IMAGE if model in IMAGE.known() else VIDEO


@pytest.mark.parametrize("model", ["sd15", "sdxl", "cogvideox-2b", "cogvideox-5b", "cogvideox-1.5-5b"])
def test_every_model_has_a_recipe_for_every_place(model):
    own = [path.read_text() for path in RECIPES if model_of(path, ()) == model]
    places = [place for text in own for place in PLACES if place in text.partition("\n")[0]]
    assert set(places) == set(PLACES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_resolves_and_its_engine_would_start(path, monkeypatch):
    model = model_of(path, ())
    assert model in {**IMAGE.known(), **VIDEO.known()}
    family = family_of(model)
    recipe = resolve_recipe(family.presets(family.find(model, None)), path)
    assert recipe.model == model
    assert f"--config recipes/{path.name}" in path.read_text()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("RANK", "0")
    processes = int(re.search(r"# needs: (\d+) GPU", path.read_text())[1])
    assert check_engine(recipe, processes) == (recipe.engine if recipe.engine != "auto" else "single")
    if recipe.rollout == "pool":
        assert recipe.pool_size >= recipe.update_rows * processes
    else:
        assert recipe.too_few_samples(processes) is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_the_paper_s_where_it_says_so_and_else_the_default(path):
    model = model_of(path, ())
    family = family_of(model)
    base = family.find(model, None)
    found = resolve_recipe(family.presets(base), path)
    if "published" not in path.read_text():
        wanted = resolve_recipe(family.presets(base), None, {"train": found.train})
        assert_same(found, wanted, {*SAMPLED, "rank", "targets", "steps"})
        return
    wanted = resolve_recipe(family.presets(base, "paper"), None, {"train": found.train})
    assert_same(found, wanted, {*PAPER, "steps", "learning_rate", "update_rows"} - {"optimizer", "targets"})


def assert_same(found, wanted, keys):
    assert {key: getattr(found, key) for key in keys} == {key: getattr(wanted, key) for key in keys}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem in SIMULATED else pytest.mark.exhaustive)
        for path in RECIPES
    ],
    ids=lambda path: path.stem,
)
def test_a_recipe_needs_what_it_says(path):
    model = model_of(path, ())
    processes, size = re.search(r"# needs: (\d+) GPUs?, ([\d.]+) GiB", path.read_text()).groups()
    family = family_of(model)
    base = family.find(model, None)
    recipe = resolve_recipe(family.presets(base), path, ["device=cuda"])
    sketch = family.sketch(base, recipe, DTYPES[base_dtype(recipe)])
    asked = dry_run(sketch, recipe, ["a prompt"] * 500, int(processes)).largest.device_bytes / 2**30
    assert asked == pytest.approx(float(size), rel=0.02)
