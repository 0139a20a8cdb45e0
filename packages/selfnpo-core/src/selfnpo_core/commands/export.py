"""`export`: negative weights in the forms that other programs read."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from selfnpo_core.commands.family import AnyFamily
from selfnpo_core.errors import InputError
from selfnpo_core.models.hub import check_push, push
from selfnpo_core.system.paths import check_folder
from selfnpo_core.training.resolving import build_recipe
from selfnpo_core.weights import exporting
from selfnpo_core.weights.npo_folder import Npo, Recommended, load_npo
from selfnpo_core.weights.npo_rule import NpoRule

log = logging.getLogger(__name__)


def run_export(family: AnyFamily, options: Mapping[str, Any]) -> None:
    """`export`: negative weights in the forms that other programs read."""
    npo, output, form, rank = load_npo(options["npo"]), Path(options["output"]), options["form"], options["rank"]
    model = options["model"] or (npo.config.base_model if npo.config else None)
    recommended = npo.config.recommended if npo.config else Recommended()
    beta = recommended.beta if options["beta"] is None else options["beta"]
    _check_export(npo, output, options)
    if model is None:
        raise InputError(f"{npo.path} does not say what its base is: give it as --model")
    if form == "kohya" and not family.has_kohya:
        raise InputError(f"{family.program} has no kohya format, which is for UNets: use --format diffusers")
    foreign = npo.config is None  # its names are the base's to tell
    needs_weights = npo.kind == "delta" or form in ("merged", "neon") or foreign
    asked = options["model"] is not None or needs_weights or form == "kohya"
    base = family.find(model, options["model_config"]) if asked else None
    backbone = None
    if needs_weights:
        stored = npo.config.recipe if npo.config else {}
        size = {key: stored.get(key) for key in ("frames", "height", "width")}
        backbone = family.backbone(base, build_recipe(size), torch.float32, "auto")
        exporting.check(npo, backbone)
    if form in ("diffusers", "lora"):
        done = exporting.to_diffusers(npo, backbone, output, rank=rank)
    elif form == "kohya":
        lora, errors = exporting.near_lora(npo, backbone, rank)
        output = output if output.suffix == ".safetensors" else output.with_name(f"{output.name}.safetensors")
        scale = sum(recommended.guidance_scale) / 2
        done = exporting.to_kohya(npo, lora, family.kohya(lora, npo, base, beta, scale, output.name), output)
        done = replace(done, errors=errors)
        if recommended.rule != NpoRule():
            log.warning("the workflow has two branches, and these weights are best used by rule %s", recommended.rule)
    elif form == "merged":
        assert backbone is not None
        done = exporting.to_merged(npo, backbone, output, beta=beta)
    else:
        assert backbone is not None
        into: exporting.Into = options["into"] or ("lora" if npo.kind == "lora" else "merged")
        strength = options["strength"]
        done = exporting.to_neon(npo, backbone, output, strength=strength, into=into, rank=rank)
    click.echo(f"{form} in {done.path}")
    if options["push_to_hub"] is not None:
        beside = (done.path.with_suffix(suffix) for suffix in (".comfyui.json", ".comfyui.txt"))
        written = [done.path, *(path for path in beside if form == "kohya")]
        click.echo(f"and in {push(written, options['push_to_hub'], private=options['private'])}")
    if done.notes:
        click.echo(done.notes.rstrip())
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
    if options["push_to_hub"] is not None:
        check_push(options["push_to_hub"])
    elif options["private"]:
        raise InputError("--private is for --push-to-hub: give the repository, or leave it out")
    check_folder(output.parent)
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise InputError(f"output {output} exists already: choose another")
