"""The training engine that every model family uses: recipe, run folder, updates, checkpoints, result.

    recipe = resolve_recipe(presets, "recipe.yaml", ["rank=32"])
    train(backbone, recipe, prompts, "runs/one")          # → runs/one/npo

Names are imported when first used, so that reading a recipe or an npo folder needs neither PEFT nor Accelerate.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfnpo_core.training.backbone import Backbone, Negative
    from selfnpo_core.training.embeddings import EmbeddingsCache
    from selfnpo_core.training.estimate import DryRun, dry_run
    from selfnpo_core.training.hashing import weights_hash
    from selfnpo_core.training.npo_folder import Npo, NpoConfig, check_base, load_npo
    from selfnpo_core.training.recipe import Recipe, build_recipe, resolve_recipe
    from selfnpo_core.training.run_folder import holds_run, new_run_folder, stored_recipe
    from selfnpo_core.training.stopping import Interrupted
    from selfnpo_core.training.trainer import train

_MODULES = {
    "Backbone": "backbone",
    "DryRun": "estimate",
    "EmbeddingsCache": "embeddings",
    "Interrupted": "stopping",
    "Negative": "backbone",
    "Npo": "npo_folder",
    "NpoConfig": "npo_folder",
    "Recipe": "recipe",
    "Recommended": "recipe",
    "build_recipe": "recipe",
    "check_base": "npo_folder",
    "dry_run": "estimate",
    "holds_run": "run_folder",
    "load_npo": "npo_folder",
    "new_run_folder": "run_folder",
    "resolve_recipe": "recipe",
    "stored_recipe": "run_folder",
    "train": "trainer",
    "weights_hash": "hashing",
}

__all__ = [
    "Backbone",
    "DryRun",
    "EmbeddingsCache",
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


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
