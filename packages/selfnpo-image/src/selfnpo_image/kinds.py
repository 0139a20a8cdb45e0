"""What a family of image models is: its `Kind`, and the checks that tell whether a configuration is of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfnpo_core.errors import InputError
from selfnpo_core.schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from selfnpo_core.training.recipe import Presets

CONFIGS = Path(__file__).with_name("configs")
"""A folder a family that has single files: those of its first release, as a diffusers folder without weights."""

CLIP_L = "openai/clip-vit-large-patch14"
STEM = "model.diffusion_model.input_blocks.0.0.weight"
"""The first convolution of a UNet, in a single file."""

Configs = Mapping[str, Mapping[str, Any]]
"""By place in a diffusers folder, such as unet/config.json."""
Shapes = Mapping[str, tuple[int, ...]]
"""Of the tensors in a single-file checkpoint, by name."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a family's single files are known, and what they lack.

    text: how the names of its text encoder begin. cross_attention: a weight whose width is that of the text.
    folder: its configurations. tokenizers: component → (place on the hub, padding token or None).
    """

    text: str
    cross_attention: str
    folder: Path
    tokenizers: Mapping[str, tuple[str, str | None]]

    def owns(self, shapes: Shapes) -> bool:
        return STEM in shapes and any(name.startswith(self.text) for name in shapes)

    @cached_property
    def configs(self) -> Configs:
        files = sorted(self.folder.rglob("*.json"))
        return {path.relative_to(self.folder).as_posix(): read_config(path, self.folder.name) for path in files}

    @property
    def text_width(self) -> int:
        return int(self.configs["unet/config.json"]["cross_attention_dim"])


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


def check_scheduler(scheduler: Any, kind: Kind, name: str) -> str:
    """The prediction type, if it is one of the family's."""
    flow = NoiseSchedule.from_scheduler(scheduler).is_flow
    found = "flow" if flow else str(scheduler.config.get("prediction_type", "epsilon"))
    if found not in kind.predicts:
        raise InputError(f"model {name} predicts '{found}': use a model that predicts {' or '.join(kind.predicts)}")
    return found


def halvings(config: Any) -> int:
    """A UNet halves latents level by level."""
    return int(2 ** (len(config.block_out_channels) - 1))


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
