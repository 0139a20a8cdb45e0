"""What a family of image models is, and the checks that tell which one a checkpoint is of, before weights are read.

A family is one file: a `Kind`, and a subclass of `selfnpo_image.backbone.ImageBackbone` that says how its network is
asked. It is found by the class of the pipeline in model_index.json, or by the names in a single file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfnpo_core.errors import InputError
from selfnpo_core.schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from selfnpo_core.training.recipe import Presets
    from selfnpo_image.backbone import ImageBackbone
    from selfnpo_image.single_file import Layout

Shapes = Mapping[str, tuple[int, ...]]
"""Of the tensors in a single-file checkpoint, by name."""

_MODULES = {"sd15": "selfnpo_image.sd15:SD15", "sdxl": "selfnpo_image.sdxl:SDXL", "sd3": "selfnpo_image.sd3:SD3"}
_PIPELINES = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
}

_OTHER_FILES = {
    "a FLUX checkpoint": ("model.diffusion_model.double_blocks.", "double_blocks."),
    "a Stable Diffusion 2 checkpoint (as a diffusers folder it can be used)": ("cond_stage_model.model.",),
    "a ControlNet": ("control_model.", "controlnet_"),
    "a LoRA (negative weights go to --npo)": ("lora_unet_", "lora_te", "unet.", "text_encoder.", "transformer."),
    "a bare UNet (give the whole diffusers folder)": ("down_blocks.", "conv_in."),
    "a bare VAE (give the whole checkpoint)": ("encoder.", "decoder.", "quant_conv."),
    "a video or transformer model": (
        "blocks.",
        "transformer_blocks.",
        "patch_embed.",
        "patch_embedding.",
        "joint_blocks.",
        "model.diffusion_model.joint_blocks.",
    ),
}
"""What a file is if a name in it begins so; asked in this order, of files that are of no family."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family, without its behaviour.

    title, examples: for messages. network: class of the denoiser, in the pipeline's component `denoiser`.
    optional: text encoders that a model may lack. left_out: arguments that keep the loader from what is not needed.
    check: raises by `wrong` for a configuration of the network that is not of the family.
    granularity: of a network's configuration → latents' height and width must be multiples of it.
    layout: of single-file checkpoints, where the family has them.
    """

    name: str
    title: str
    examples: str
    pipeline: type[DiffusionPipeline]
    presets: Presets
    network: str
    denoiser: str = "unet"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    optional: tuple[str, ...] = ()
    left_out: Mapping[str, Any] = field(default_factory=dict)
    predicts: tuple[str, ...] = ("epsilon", "v_prediction", "sample")
    check: Callable[[Kind, Mapping[str, Any], str], None]
    granularity: Callable[[Any], int]
    layout: Layout | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Components with weights."""
        return (self.denoiser, "vae", *self.text_encoders)

    def wrong(self, name: str, what: str) -> InputError:
        return InputError(
            f"model {name} is {what}, not of the {self.title} family: give one that is, such as {self.examples}"
        )


def backbone_of(family: str) -> type[ImageBackbone]:
    """The class of a family, which has its `Kind` as `kind`."""
    module, _, attribute = _MODULES[family].partition(":")
    found: type[ImageBackbone] = getattr(import_module(module), attribute)
    return found


def kind_of_index(index: Mapping[str, Any], name: str) -> Kind:
    """By the class that model_index.json names."""
    found = index.get("_class_name")
    if found not in _PIPELINES:
        what = f"a {found}" if found else "no diffusers pipeline"
        raise InputError(f"model {name} is {what}: give one of {', '.join(_PIPELINES)}")
    return backbone_of(_PIPELINES[found]).kind


def kind_of_file(shapes: Shapes, name: str) -> Kind:
    """By the names in a single-file checkpoint."""
    for family in _MODULES:
        kind = backbone_of(family).kind
        if kind.layout is not None and kind.layout.owns(shapes):
            return kind
    for what, beginnings in _OTHER_FILES.items():
        if any(key.startswith(beginnings) for key in shapes):
            raise InputError(f"model {name} is {what}: give a whole checkpoint of SD1.5, SDXL or SD3")
    raise InputError(f"model {name} is a file of unknown contents: give a whole checkpoint of SD1.5, SDXL or SD3")


def kind_of_folder(folder: Path, name: str) -> Kind:
    """By its model_index.json; the network's configuration is checked too, and that all weights are safetensors."""
    kind = kind_of_index(read_config(folder / "model_index.json", name), name)
    check_network(kind, read_config(folder / kind.denoiser / "config.json", name), name)
    for part in kind.parts:
        if part in kind.optional and not (folder / part).is_dir():
            continue
        if not any((folder / part).glob("*.safetensors")):
            pickled = any(p.suffix in (".bin", ".pt", ".pth", ".ckpt") for p in (folder / part).glob("*"))
            problem = "only pickled weights, which can run code when loaded" if pickled else "no weights"
            raise InputError(f"model {name} has {problem} in {part}: get it as safetensors")
    return kind


def check_network(kind: Kind, config: Mapping[str, Any], name: str) -> None:
    """The denoiser's config.json tells inpainting, refining and distilled networks from ours."""
    if config.get("_class_name", kind.network) != kind.network:
        raise kind.wrong(name, f"built on a {config['_class_name']}")
    kind.check(kind, config, name)


def check_unet(kind: Kind, config: Mapping[str, Any], name: str, conditions: Sequence[str]) -> None:
    """A UNet on 4 latent channels that takes none of these added conditions."""
    if config.get("in_channels", 4) != 4:
        raise kind.wrong(name, f"an inpainting or editing model ({config['in_channels']} input channels)")
    for key in conditions:
        if config.get(key):
            raise kind.wrong(name, f"a UNet with {key} {config[key]}")


def halvings(config: Any) -> int:
    """A UNet halves latents level by level."""
    return int(2 ** (len(config.block_out_channels) - 1))


def check_scheduler(scheduler: Any, kind: Kind, name: str) -> str:
    """The prediction type, if it is one of the family's."""
    flow = NoiseSchedule.from_scheduler(scheduler).is_flow
    found = "flow" if flow else str(scheduler.config.get("prediction_type", "epsilon"))
    if found not in kind.predicts:
        raise InputError(f"model {name} predicts '{found}': use a model that predicts {' or '.join(kind.predicts)}")
    return found


def read_config(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of a diffusers folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        part = f"{path.parent.name}/{path.name}" if path.name == "config.json" else path.name
        raise InputError(f"model {name} has no {part}: give a diffusers folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): get the model again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: get the model again")
    return value
