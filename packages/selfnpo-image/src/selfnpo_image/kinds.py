"""What a family of image models is, without its behaviour: its `Kind`, and the `FileLayout` of its single files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfnpo_core.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from selfnpo_core.training.recipe import Presets

CONFIGS = Path(__file__).with_name("configs")
"""A folder a family that has single files: those of its first release, as a diffusers folder without weights."""

STEM = "model.diffusion_model.input_blocks.0.0.weight"
"""The first convolution of a UNet, in a single file."""

Configs = Mapping[str, Mapping[str, Any]]
"""By place in a diffusers folder, such as unet/config.json."""
Shapes = Mapping[str, tuple[int, ...]]
"""Of the tensors in a single-file checkpoint, by name."""


@cache
def configs_in(folder: Path) -> Configs:
    """All configurations of a folder that came with the package."""
    files = sorted(folder.rglob("*.json"))
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text("utf-8")) for path in files}


@dataclass(frozen=True, kw_only=True)
class FileLayout:
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
        return configs_in(self.folder)

    @property
    def text_width(self) -> int:
        return int(self.configs["unet/config.json"]["cross_attention_dim"])


@dataclass(frozen=True, kw_only=True)
class KohyaForm:
    """How kohya's trainer names a family's layers, and the pixels a side of a workflow's pictures.

    first_release: as the family's first release does, which counts all blocks through; else as diffusers does.
    """

    first_release: bool
    side: int


@dataclass(frozen=True, kw_only=True)
class ComfyForm:
    """How ComfyUI's model of a family of transformers names layers, and what a workflow of it loads.

    blocks: how the names of blocks begin, in diffusers and there. layers: of a layer in a block, its name there and
    which third of a matrix for q, k and v it is. same_names: other layers are called alike.
    encoders: files of text encoders by number, 0 where there is one; clip: their type, empty where there is no choice.
    vae: its file. latents: the node that makes empty ones.
    """

    blocks: Mapping[str, str]
    layers: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    same_names: bool = False
    encoders: Mapping[int, str]
    clip: str
    vae: str
    latents: str


def thirds(diffusers: tuple[str, str, str], fused: str) -> dict[str, tuple[str, int | None]]:
    """Of three layers that are one there."""
    return {name: (fused, third) for third, name in enumerate(diffusers)}


def _by_scale(scale: float) -> dict[str, Any]:
    return {"guidance_scale": scale}


def _by_text(pipe: Any, texts: Sequence[str]) -> dict[str, Any]:
    return {"negative_prompt": list(texts)}


def _undecoded(pipe: Any, arguments: Mapping[str, Any]) -> Tensor:
    latents: Tensor = pipe(**arguments, output_type="latent").images
    return latents


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a family's stock pipeline is called, where that differs from Stable Diffusion's.

    guidance: its arguments for a guidance scale g, ε(∅) + g·(ε(c) − ε(∅)), 1 being none.
    negative: its arguments for negative prompts, one a picture.
    null: the negative prompt where its user gives none; `None` leaves it to the pipeline.
    latents: the finished samples, (n, C, h, w), as the denoiser knows them, of a call with these arguments.
    never_guides_distilled: a model that says that it is distilled is not guided, whatever scale is given.
    """

    guidance: Callable[[float], Mapping[str, Any]] = _by_scale
    negative: Callable[[Any, Sequence[str]], Mapping[str, Any]] = _by_text
    null: str | None = None
    latents: Callable[[Any, Mapping[str, Any]], Tensor] = _undecoded
    never_guides_distilled: bool = False


def _halvings(vae: Mapping[str, Any]) -> int:
    return int(2 ** (len(vae["block_out_channels"]) - 1))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family, without its behaviour.

    title, examples: for messages. presets: to train with; paper: as `--config paper` has it.
    width: of the network that presets are for; width_of: a network's, by its configuration, `None` if it does not say.
    network: class of the denoiser, in the pipeline's component `denoiser`.
    optional: text encoders that a model may lack. tokens: that an encoder reads, if not what its tokenizer says.
    left_out: arguments that keep the loader from what is not needed.
    check: raises by `wrong` for a configuration of the network that is not of the family.
    granularity: of a network's configuration → latents' height and width must be multiples of it.
    side: height and width of its own latents, for a family whose networks do not say.
    pixels: a latent's side in pixels, of the VAE's configuration.
    call: of the stock pipeline.
    layout: of single-file checkpoints, where the family has them. kohya: of LoRAs in kohya's names, likewise. comfy: of
    LoRAs for ComfyUI, of a family of transformers.
    """

    name: str
    title: str
    examples: str
    pipeline: type[DiffusionPipeline]
    presets: Presets
    paper: Presets
    width: int
    width_of: Callable[[Mapping[str, Any]], int | None]
    network: str
    denoiser: str = "unet"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    optional: tuple[str, ...] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, Any] = field(default_factory=dict)
    predicts: tuple[str, ...] = ("epsilon", "v_prediction", "sample")
    check: Callable[[Kind, Mapping[str, Any], str], None]
    granularity: Callable[[Any], int]
    side: int | None = None
    pixels: Callable[[Mapping[str, Any]], int] = _halvings
    call: Call = field(default_factory=Call)
    layout: FileLayout | None = None
    kohya: KohyaForm | None = None
    comfy: ComfyForm | None = None

    def own_sides(self, network: Any, name: str) -> tuple[int, int] | None:
        """Height and width of the latents that a network was made for, by its configuration; `None` if it is silent.

        Raises `InputError` for what is no size.
        """
        size = network.get("sample_size", self.side)
        if size is None:
            return None
        sides = (size, size) if isinstance(size, int) else size
        if isinstance(sides, list | tuple) and len(sides) == 2 and all(_is_side(side) for side in sides):
            return int(sides[0]), int(sides[1])
        raise InputError(f"model {name} has sample_size {size} in {self.denoiser}/config.json: correct it to a number")

    @property
    def one(self) -> str:
        """ "an SD3": the title with its article."""
        return f"{'an' if self.title.startswith('SD') else 'a'} {self.title}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Components with weights."""
        return (self.denoiser, "vae", *self.text_encoders)

    def readers(self, pipe: Any) -> dict[str, tuple[Any, int]]:
        """The text encoders that a pipeline has: each one's tokenizer, and how many tokens it reads."""
        found = {}
        for part in self.text_encoders:
            if (tokenizer := getattr(pipe, part.replace("text_encoder", "tokenizer"))) is not None:
                found[part] = (tokenizer, self.tokens.get(part, tokenizer.model_max_length))
        return found

    def wrong(self, name: str, what: str) -> InputError:
        return InputError(
            f"model {name} is {what}, not of the {self.title} family: give one that is, such as {self.examples}"
        )


def sizeless(denoiser: str, name: str) -> InputError:
    """Of a model that was asked for pictures of its own size, and has none."""
    return InputError(
        f"model {name} does not say what size it was made for (no sample_size in {denoiser}/config.json): give "
        "height and width"
    )


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
