"""The training engine that every model family uses: recipe, run folder, updates, checkpoints, result.

recipe = resolve_recipe(presets, "recipe.yaml", ["rank=32"])
train(backbone, recipe, prompts, "runs/one")          # → runs/one/npo
"""

from selfnpo_core.training.backbone import Backbone, Negative
from selfnpo_core.training.estimate import DryRun, dry_run
from selfnpo_core.training.hashing import weights_hash
from selfnpo_core.training.npo_folder import Npo, NpoConfig, Recommended, check_base, load_npo
from selfnpo_core.training.recipe import Recipe, build_recipe, resolve_recipe
from selfnpo_core.training.run_folder import holds_run, new_run_folder, stored_recipe
from selfnpo_core.training.stopping import Interrupted
from selfnpo_core.training.trainer import train

__all__ = [
    "Backbone",
    "DryRun",
    "Interrupted",
    "Negative",
    "Npo",
    "NpoConfig",
    "Recipe",
    "Recommended",
    "build_recipe",
    "check_base",
    "dry_run",
    "holds_run",
    "load_npo",
    "new_run_folder",
    "resolve_recipe",
    "stored_recipe",
    "train",
    "weights_hash",
]
