"""`train`: negative weights from prompts only."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import click

from selfnpo_core.commands.family import AnyFamily, Options
from selfnpo_core.commands.options import set_key
from selfnpo_core.errors import InputError
from selfnpo_core.models.loading import one_line_errors
from selfnpo_core.models.prompts import kept_prompts
from selfnpo_core.system.devices import DTYPES, best_device
from selfnpo_core.system.paths import check_folder
from selfnpo_core.system.processes import is_main, on_main
from selfnpo_core.training.accelerators import check_engine, make_accelerator
from selfnpo_core.training.estimate import check_memory, dry_run
from selfnpo_core.training.presets import name_or_file, why_rate
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.resolving import given_keys, model_of, resolve_recipe
from selfnpo_core.training.run_folder import holds_run, new_run_folder
from selfnpo_core.training.trainer import train
from selfnpo_core.training.work import work_of

log = logging.getLogger(__name__)


def run_train(family: AnyFamily, options: Options) -> None:
    """`train` with the options of `selfnpo_core.commands.options.train_options`."""
    base, recipe = resolve(family, options)
    prompts = _prompts(family, recipe, options)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    _check_output(recipe, resume=options["resume"])
    device = "cpu" if recipe.device == "cpu" else "auto"
    dtype = DTYPES[base_dtype(recipe)]
    with one_line_errors(base.source):
        sketched = family.sketch(base, recipe, dtype)
    if options["dry_run"]:
        backbone = sketched or family.backbone(base, recipe, dtype, device)
        click.echo(dry_run(backbone, recipe, prompts, processes))
        click.echo(work_of(backbone, recipe, prompts, processes))
        return
    check_engine(recipe, processes)
    check_folder(recipe.output or "runs")
    if sketched is not None:
        check_memory(sketched, recipe, prompts, best_device(device), processes)
    backbone = family.backbone(base, recipe, dtype, device)
    output = Path(recipe.output) if recipe.output else _new_folder(recipe, processes)
    recipe = recipe.model_copy(update={"output": str(output)})
    try:
        npo = train(backbone, recipe, prompts, output, resume=options["resume"])
    except InputError:
        if options["output"] is None and is_main():
            _remove_if_unused(output)
        raise
    if not is_main():
        return
    click.echo(f"negative weights in {npo}")
    compare = f"{family.program} compare --model {recipe.model} --npo {output}"
    click.echo(f"try: {compare} --prompts builtin --output samples")


def resolve(family: AnyFamily, options: Options) -> tuple[Any, Recipe]:
    """The base that is asked for, and the recipe: preset < --config (on --resume, the run's own) < --set < the rest.

    A --config that is a name chooses the preset.
    """
    config = options["config"]
    if options["resume"]:
        config = config or _stored_config(options["output"])
    keys = (*family.recipe_options, "model", "prompts", "output")
    given = [set_key(key, options[key]) for key in keys if options.get(key) is not None]
    overrides = [*options["overrides"], *given]
    name, file = name_or_file(config)
    model = model_of(file, overrides)
    if not model:
        raise InputError("--model is missing: give a known name (see `models`), a folder, a file or a hub id")
    base = family.find(model, options.get("model_config"))
    presets = family.presets(base, name)
    recipe = resolve_recipe(presets, file, overrides)
    if name is None and (line := why_rate(recipe, given_keys(file, overrides), base.widths)) and is_main():
        log.info(line)
    return base, recipe


def base_dtype(recipe: Recipe) -> str:
    """A frozen base may lie in 16 bits; weights that are trained may not."""
    if recipe.train == "lora" and recipe.mixed_precision != "no":
        return recipe.mixed_precision
    return "fp32"


def _stored_config(output: str | None) -> str:
    """config.yaml of the run that is to be resumed."""
    if output is None:
        raise InputError("--resume needs the run to go on with: give --output RUN")
    if not holds_run(output):
        raise InputError(f"nothing to resume in {output}: leave --resume out to begin a run there")
    return str(Path(output) / "config.yaml")


def _prompts(family: AnyFamily, recipe: Recipe, options: Options) -> list[str]:
    """A resumed run keeps its own prompts unless others are given, which its folder then refuses."""
    assert recipe.model is not None
    kept = Path(options["output"] or "") / "prompts.txt"
    if options["resume"] and options["prompts"] is None and kept.is_file():
        return kept_prompts(kept)
    return family.prompts(recipe.prompts, recipe.model)


def _new_folder(recipe: Recipe, processes: int) -> Path:
    """The first process chooses for all."""
    assert recipe.model is not None
    name = folder_name(recipe.model)
    if processes > 1:
        make_accelerator(recipe)  # brings them together
    return on_main(lambda: new_run_folder("runs", name))


def _check_output(recipe: Recipe, *, resume: bool) -> None:
    """What can be known to be wrong with the run folder before a model is loaded."""
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


def folder_name(model: str) -> str:
    """A short name for run folders from what the user called the model."""
    stem = Path(model.rstrip("/")).name.removesuffix(".safetensors")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"
