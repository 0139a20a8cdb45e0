"""`train`: negative weights from prompts only."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selfnpo_core.cli import folder_name, set_key, train_options
from selfnpo_core.errors import InputError

if TYPE_CHECKING:
    from selfnpo_core.training.recipe import Recipe


@click.command(help="Train negative weights. The result is RUN/npo; --resume goes on from RUN's last checkpoint.")
@train_options
def train(**options: Any) -> None:
    from selfnpo_core import training
    from selfnpo_image.models import find_source
    from selfnpo_image.recipes import base_dtype
    from selfnpo_image.sd15 import DTYPES, SD15

    recipe = resolve(options)
    assert recipe.model is not None
    source = find_source(recipe.model, options["model_config"])
    prompts = _prompts(recipe, options)
    _check_output(recipe, resume=options["resume"])
    device = "cpu" if recipe.device == "cpu" else "auto"
    backbone = SD15(source, dtype=DTYPES[base_dtype(recipe)], device=device)
    if options["dry_run"]:
        click.echo(training.dry_run(backbone, recipe, prompts))
        return
    output = Path(recipe.output) if recipe.output else training.new_run_folder("runs", folder_name(recipe.model))
    recipe = recipe.model_copy(update={"output": str(output)})
    try:
        npo = training.train(backbone, recipe, prompts, output, resume=options["resume"])
    except InputError:
        if options["output"] is None:
            _remove_if_unused(output)
        raise
    click.echo(f"negative weights in {npo}")
    click.echo(f"try: selfnpo-image compare --model {recipe.model} --npo {output} --prompts builtin --output pictures")


def resolve(options: Mapping[str, Any]) -> "Recipe":
    """The recipe of these options: preset < --config (on --resume, the run's own) < --set < --model and the rest."""
    from selfnpo_core.training import resolve_recipe
    from selfnpo_image.recipes import presets_for

    config = options["config"]
    if options["resume"]:
        config = config or _stored_config(options["output"])
    given = [set_key(key, options[key]) for key in ("model", "prompts", "output") if options[key] is not None]
    overrides = [*options["overrides"], *given]
    model = resolve_recipe({}, config, overrides).model
    if not model:
        raise InputError("--model is missing: give a known name (see `models`), a folder, a file or a hub id")
    return resolve_recipe(presets_for(model), config, overrides)


def _stored_config(output: str | None) -> str:
    """config.yaml of the run that is to be resumed."""
    from selfnpo_core.training import holds_run

    if output is None:
        raise InputError("--resume needs the run to go on with: give --output RUN")
    if not holds_run(output):
        raise InputError(f"nothing to resume in {output}: leave --resume out to begin a run there")
    return str(Path(output) / "config.yaml")


def _prompts(recipe: "Recipe", options: Mapping[str, Any]) -> list[str]:
    """A resumed run keeps its own prompts unless others are given, which its folder then refuses."""
    from selfnpo_core.prompts import read_prompts
    from selfnpo_image.prompts import load_prompts

    assert recipe.model is not None
    kept = Path(options["output"] or "") / "prompts.txt"
    if options["resume"] and options["prompts"] is None and kept.is_file():
        return read_prompts(kept)
    return load_prompts(recipe.prompts, recipe.model)


def _check_output(recipe: "Recipe", *, resume: bool) -> None:
    """What can be known to be wrong with the run folder before a model is loaded."""
    from selfnpo_core.training import holds_run

    if recipe.output is None or resume:
        return
    if holds_run(recipe.output):
        raise InputError(
            f"output folder {recipe.output} holds another run: continue it with --resume, or choose another"
        )


def _remove_if_unused(output: Path) -> None:
    """A run that never began leaves no empty folder."""
    if output.is_dir() and all(path.name == ".lock" for path in output.iterdir()):
        (output / ".lock").unlink(missing_ok=True)
        output.rmdir()
