"""The commands of every family that begin with a loaded model: `train` and `inspect`."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from selfnpo_core.cli import echo_json, folder_name, set_key
from selfnpo_core.errors import InputError
from selfnpo_core.models.backbone import Backbone
from selfnpo_core.models.prompts import read_prompts
from selfnpo_core.models.sources import Source
from selfnpo_core.system.devices import DTYPES, best_device
from selfnpo_core.system.processes import is_main, on_main
from selfnpo_core.training.accelerators import make_accelerator
from selfnpo_core.training.estimate import check_memory, dry_run
from selfnpo_core.training.recipe import Presets, Recipe, build_recipe, resolve_recipe
from selfnpo_core.training.run_folder import holds_run, new_run_folder
from selfnpo_core.training.trainer import train
from selfnpo_core.weights.npo_folder import Npo, Recommended, load_npo

if TYPE_CHECKING:
    from selfnpo_core.weights.exporting import KohyaFiles
    from selfnpo_core.weights.offsets import Lora


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a distribution brings to the command."""

    program: str
    """Name of its command line."""
    presets: Callable[[str | None], Presets]
    """Presets of a model by the name its user gave it."""
    source: Callable[[str, str | None], Source]
    """What --model and --model-config stand for."""
    prompts: Callable[[str, str], list[str]]
    """(file or `builtin`, model) → prompts."""
    backbone: Callable[[Source, Recipe, torch.dtype, str], Backbone]
    """(source, recipe, dtype of the base, device) → the model, loaded."""
    sketch: Callable[[Source, Recipe, torch.dtype], Backbone | None] | None = None
    """The model without weights, so that sizes and memory are checked before any are read or fetched; `None` where its
    configuration is not known yet."""
    kohya: "Callable[[Lora, Npo, Source, float, float, str], KohyaFiles] | None" = None
    """(LoRA, negative weights, base, beta, guidance scale, file name) → tensors in kohya's names, and a workflow."""


def run_train(family: Family, options: Mapping[str, Any]) -> None:
    """`train` with the options of `selfnpo_core.cli.train_options`."""
    recipe = resolve(family, options)
    assert recipe.model is not None
    source = family.source(recipe.model, options["model_config"])
    prompts = _prompts(family, recipe, options)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    _check_output(recipe, resume=options["resume"])
    device = "cpu" if recipe.device == "cpu" else "auto"
    dtype = DTYPES[base_dtype(recipe)]
    sketched = family.sketch(source, recipe, dtype) if family.sketch else None
    if options["dry_run"]:
        click.echo(dry_run(sketched or family.backbone(source, recipe, dtype, device), recipe, prompts, processes))
        return
    if sketched is not None:
        check_memory(sketched, recipe, prompts, best_device(device), processes)
    backbone = family.backbone(source, recipe, dtype, device)
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


def run_inspect(
    family: Family, path: str, model: str | None, model_config: str | None, *, as_json: bool, plot: str | None = None
) -> int:
    """`inspect`: what negative weights are; 1 if they do nothing."""
    from selfnpo_core.weights import inspection

    npo = inspection.inspect_npo(path)
    facts = inspection.describe(npo)
    if model is None and facts["base_model"] == "demo":
        model = "demo"
    facts["strength"] = None
    if model is not None and facts["has_effect"]:
        stored = npo.config.recipe if npo.config else {}
        size = {key: stored.get(key) for key in ("frames", "height", "width")}
        backbone = family.backbone(family.source(model, model_config), build_recipe(size), torch.float32, "auto")
        facts["strength"] = asdict(inspection.measure_strength(npo, backbone))
    if plot is not None:
        inspection.plot(facts, Path(plot))
    if as_json:
        echo_json(facts)
    else:
        click.echo(_describe(facts))
    return 0 if facts["has_effect"] and facts["finite"] else 1


def run_export(family: Family, options: Mapping[str, Any]) -> None:
    """`export`: negative weights in the forms that other programs read."""
    from selfnpo_core.weights import exporting

    npo, output, form, rank = load_npo(options["npo"]), Path(options["output"]), options["form"], options["rank"]
    model = options["model"] or (npo.config.base_model if npo.config else None)
    recommended = npo.config.recommended if npo.config else Recommended()
    beta = recommended.beta if options["beta"] is None else options["beta"]
    _check_export(npo, output, options)
    if model is None:
        raise InputError(f"{npo.path} does not say what its base is: give it as --model")
    source = family.source(model, options["model_config"])
    backbone = None
    if npo.kind == "delta" or form in ("merged", "neon"):
        stored = npo.config.recipe if npo.config else {}
        size = {key: stored.get(key) for key in ("frames", "height", "width")}
        backbone = family.backbone(source, build_recipe(size), torch.float32, "auto")
        exporting.check(npo, backbone)
    if form in ("diffusers", "lora"):
        done = exporting.to_diffusers(npo, backbone, output, rank=rank)
    elif form == "kohya":
        if family.kohya is None:
            raise InputError(f"{family.program} has no kohya format, which is for UNets: use --format diffusers")
        lora, errors = exporting.near_lora(npo, backbone, rank)
        output = output if output.suffix == ".safetensors" else output.with_name(f"{output.name}.safetensors")
        scale = sum(recommended.guidance_scale) / 2
        done = exporting.to_kohya(npo, lora, family.kohya(lora, npo, source, beta, scale, output.name), output)
        done = exporting.Exported(done.path, errors)
    elif form == "merged":
        assert backbone is not None
        done = exporting.to_merged(npo, backbone, output, beta=beta)
    else:
        assert backbone is not None
        into = options["into"] or ("lora" if npo.kind == "lora" else "merged")
        strength = options["strength"]
        done = exporting.to_neon(npo, backbone, output, strength=strength, into=into, rank=rank)
    click.echo(f"{form} in {done.path}")
    for what, error in done.errors.items():
        click.echo(f"relative error, {what:<12} {error:.2%}")


def _check_export(npo: Npo, output: Path, options: Mapping[str, Any]) -> None:
    """What can be known to be wrong before a model is loaded."""
    form = options["form"]
    if (options["strength"] is None) == (form == "neon"):
        raise InputError("--strength is w of --format neon, θ − w·δ: give it there, and only there")
    if options["into"] is not None and form != "neon":
        raise InputError("--into is for --format neon: leave it out")
    if options["beta"] is not None and form not in ("merged", "kohya"):
        raise InputError("--beta is for --format merged and for kohya's workflow: leave it out")
    if form == "lora" and npo.kind == "lora":
        raise InputError(f"{npo.path} is a LoRA already: use --format diffusers or kohya")
    if options["rank"] is not None and form == "merged":
        raise InputError("--rank is for making a LoRA: leave it out")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise InputError(f"output {output} exists already: choose another")


def resolve(family: Family, options: Mapping[str, Any]) -> Recipe:
    """The recipe of these options: preset < --config (on --resume, the run's own) < --set < --model and the rest."""
    config = options["config"]
    if options["resume"]:
        config = config or _stored_config(options["output"])
    given = [set_key(key, options[key]) for key in ("model", "prompts", "output") if options[key] is not None]
    overrides = [*options["overrides"], *given]
    model = resolve_recipe({}, config, overrides).model
    if not model:
        raise InputError("--model is missing: give a known name (see `models`), a folder, a file or a hub id")
    return resolve_recipe(family.presets(model), config, overrides)


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


def _prompts(family: Family, recipe: Recipe, options: Mapping[str, Any]) -> list[str]:
    """A resumed run keeps its own prompts unless others are given, which its folder then refuses."""
    assert recipe.model is not None
    kept = Path(options["output"] or "") / "prompts.txt"
    if options["resume"] and options["prompts"] is None and kept.is_file():
        return read_prompts(kept)
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


def _describe(facts: dict[str, Any]) -> str:
    ranks, recommended, strength = facts["ranks"], facts["recommended"], facts["strength"]
    rank = f", rank {', '.join(map(str, ranks))}" if ranks else ""
    base = f"{facts['base_model']} ({facts['family']}, {facts['base_hash'][:12]})" if facts["base_model"] else "unknown"
    lines = [
        f"{facts['path']}",
        f"what          {facts['kind']}{rank}, {facts['parameters']:,} numbers in {', '.join(facts['dtypes'])}",
        f"base          {base}",
        f"layers        {facts['layers']}, {facts['layers_without_effect']} of them without effect",
        f"norm          {facts['norm']:.4g}",
        *_carriers(facts["by_layer"]),
    ]
    if recommended:
        low, high = recommended["guidance_scale"]
        lines.append(
            f"recommended   beta {recommended['beta']:g}, alpha {recommended['alpha']:g}, guidance scale {low:g} to "
            f"{high:g}, negative condition {facts['negative_condition']}"
        )
    if strength:
        lines.append(
            f"strength      |Δε|/|ε| {strength['overall']:.2%} ({strength['noisiest']:.2%} at the noisiest, "
            f"{strength['cleanest']:.2%} at the cleanest)"
        )
        lines.append("  at t        " + ", ".join(f"{t:.0f}: {ratio:.2%}" for t, ratio in strength["by_timestep"]))
    elif facts["has_effect"]:
        lines.append("strength      not measured: give the base as --model")
    if not facts["finite"]:
        lines.append("it holds NaN or infinite numbers: train again")
    elif not facts["has_effect"]:
        lines.append("it does nothing: all its changes are zero")
    return "\n".join(lines)


def _carriers(layers: Sequence[Mapping[str, Any]], shown: int = 5) -> list[str]:
    """The layers with the largest shares of ‖δ‖²."""
    first = [f"{layer['share']:6.1%}  {layer['layer']}" for layer in layers[:shown] if layer["share"] > 0]
    return [f"{'carried by' if i == 0 else '':<14}{line}" for i, line in enumerate(first)]
