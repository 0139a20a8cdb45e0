"""The training engine that every model family uses: recipe, run folder, updates, checkpoints, result.

    recipe = resolve_recipe(presets, "recipe.yaml", ["rank=32"])
    train(backbone, recipe, prompts, "runs/one")          # → runs/one/npo

Names are imported when first used, so that reading a recipe needs neither PEFT nor Accelerate.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfnpo_core.training.estimate import DryRun, dry_run
    from selfnpo_core.training.recipe import Recipe
    from selfnpo_core.training.resolving import build_recipe, resolve_recipe
    from selfnpo_core.training.run_folder import holds_run, new_run_folder, stored_recipe
    from selfnpo_core.training.trainer import train

_MODULES = {
    "DryRun": "estimate",
    "Recipe": "recipe",
    "build_recipe": "resolving",
    "dry_run": "estimate",
    "holds_run": "run_folder",
    "new_run_folder": "run_folder",
    "resolve_recipe": "resolving",
    "stored_recipe": "run_folder",
    "train": "trainer",
}

__all__ = [
    "DryRun",
    "Recipe",
    "build_recipe",
    "dry_run",
    "holds_run",
    "new_run_folder",
    "resolve_recipe",
    "stored_recipe",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
