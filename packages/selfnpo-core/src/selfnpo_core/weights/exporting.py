"""Negative weights in the forms that other programs read.

diffusers   an npo folder with a LoRA; of an offset of all weights, the nearest LoRA of a rank
kohya       one .safetensors for ComfyUI and others, and a workflow that applies it to the negative side only
merged      θ + β·δ as a whole denoiser, for programs that take a second model for the negative side
neon        θ − w·δ (Neon, 2510.03597), for models that run without guidance: a whole denoiser, or a LoRA
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.models.backbone import Backbone, LoadingBackbone
from selfnpo_core.negative import relative_error
from selfnpo_core.system.files import save_tensors, write_json, write_tensors, write_text, written_aside
from selfnpo_core.weights import offsets
from selfnpo_core.weights.inspection import added, effect_errors
from selfnpo_core.weights.lora_layers import Lora, metadata_of, say_what_is_used
from selfnpo_core.weights.npo_folder import LORA_FILE, Npo, check_base, write_npo
from selfnpo_core.weights.offsets import offset_of, to_lora

Into = Literal["lora", "merged"]
KohyaFiles = tuple[dict[str, Tensor], dict[str, Any], str]
"""The tensors of a file in kohya's names, a workflow that uses it, and what to know of it."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far a LoRA made of whole weights is from them (empty where nothing was lost).

    errors: "matrices" of the weights that a LoRA can hold, "all weights" of all, "effect" of predictions.
    """

    path: Path
    errors: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""


def component_of(backbone: Backbone) -> str:
    """ "unet" or "transformer": how a LoRA file's names begin."""
    return "unet" if "UNet" in type(backbone.denoiser).__name__ else "transformer"


def to_diffusers(npo: Npo, backbone: LoadingBackbone | None, output: Path, *, rank: int | None) -> Exported:
    """An npo folder with a LoRA. backbone: the base, for a run of all weights; the effect is measured on it."""
    if npo.kind == "lora" and npo.config is not None:
        _refuse_rank(rank)
        with written_aside(output) as aside:
            for file in npo.path.parent.iterdir():
                if file.is_file():
                    shutil.copy(file, aside)
        return Exported(output)
    assert backbone is not None
    if npo.config is None:  # from elsewhere: its layers alone, by their paths
        own, _ = near_lora(npo, backbone, rank)
        return _written(own, component_of(backbone), output)
    lora, errors = near_lora(npo, backbone, rank)
    config = npo.config.model_copy(update={"train": "lora", "rank": max(f.rank for f in lora.values())})
    component = component_of(backbone)
    tensors = offsets.peft_tensors(lora, component)

    def save(folder: Path) -> None:
        save_tensors(folder / LORA_FILE, tensors, metadata_of(lora, component))

    write_npo(output, config, save, {name.partition(".")[2]: tensor for name, tensor in tensors.items()})
    return Exported(output, errors)


def to_kohya(npo: Npo, lora: Lora, files: KohyaFiles, output: Path) -> Exported:
    """OUTPUT.safetensors, and beside it the workflow as OUTPUT.comfyui.json and what to know of it as .comfyui.txt."""
    tensors, workflow, notes = files
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": str(max(f.rank for f in lora.values()))}
    write_tensors(output, tensors, {**facts, "selfnpo_base_model": npo.config.base_model if npo.config else "unknown"})
    write_json(output.with_suffix(".comfyui.json"), workflow)
    write_text(output.with_suffix(".comfyui.txt"), notes)
    return Exported(output, notes=notes)


def to_merged(npo: Npo, backbone: Backbone, output: Path, *, beta: float) -> Exported:
    """A folder with the denoiser at θ + β·δ, for its class's `from_pretrained`."""
    if npo.lora is not None:
        say_what_is_used(npo.lora)
    scaled = {name: beta * tensor for name, tensor in offset_of(npo, backbone.denoiser).items()}
    with written_aside(output) as aside, added(backbone.denoiser, scaled):
        cast(Any, backbone.denoiser).save_pretrained(aside)
    return Exported(output)


def to_neon(
    npo: Npo, backbone: LoadingBackbone, output: Path, *, strength: float, into: Into, rank: int | None
) -> Exported:
    """θ − w·δ: a folder with the denoiser, or a LoRA to be used on all rows, at weight 1."""
    if into == "merged":
        _refuse_rank(rank)
        return to_merged(npo, backbone, output, beta=-strength)
    lora, errors = near_lora(npo, backbone, rank)
    return _written(offsets.scaled(lora, -strength), component_of(backbone), output, errors)


def near_lora(npo: Npo, backbone: LoadingBackbone | None, rank: int | None) -> tuple[Lora, dict[str, float]]:
    """The LoRA itself, or the nearest to an offset of all weights and what is lost by it."""
    if npo.kind == "lora":
        _refuse_rank(rank)
        return _denoisers_own(npo, backbone), {}
    if rank is None:
        raise InputError(f"{npo.path} is an offset of all weights: give the rank of the LoRA to make of it as --rank")
    delta = offset_of(npo)
    lora, rest = to_lora(delta, rank)
    if not lora:
        raise InputError(f"{npo.path} changes no matrix, so there is no LoRA near it: export it as merged")
    near = {f"{layer}.weight": factors.product() for layer, factors in lora.items()}
    matrices = {name: tensor for name, tensor in delta.items() if name not in rest}
    errors = {
        "matrices": relative_error(matrices, near),
        "all weights": relative_error(delta, near),
    }
    if backbone is not None:
        errors["effect"] = effect_errors(backbone, delta, {"lora": near})["lora"]
    return lora, errors


def _denoisers_own(npo: Npo, backbone: LoadingBackbone | None) -> Lora:
    """The LoRA's layers in the denoiser; what else its file holds is named."""
    lora = offsets.lora_of(npo, None if backbone is None else backbone.denoiser)
    assert npo.lora is not None
    say_what_is_used(npo.lora)
    return lora


def _written(lora: Lora, component: str, output: Path, errors: Mapping[str, float] | None = None) -> Exported:
    """A folder with this LoRA alone."""
    with written_aside(output) as aside:
        save_tensors(aside / LORA_FILE, offsets.peft_tensors(lora, component), metadata_of(lora, component))
    return Exported(output, errors or {})


def check(npo: Npo, backbone: Backbone) -> None:
    """The base must be the one that these weights were made for."""
    check_base(npo, backbone.denoiser, backbone.name, family=backbone.family)


Kohya = Callable[[Lora, Npo, float, float, str], KohyaFiles]
"""(LoRA, negative weights, beta, guidance scale, name of the file) → what is to be written."""


def _refuse_rank(rank: int | None) -> None:
    if rank is not None:
        raise InputError("--rank is for making a LoRA of an offset of all weights: leave it out")
