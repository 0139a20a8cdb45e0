"""What a family of video models is, and what the configurations of one model tell, before weights are read.

A family is one file: a `VideoKind`, and the backbone that says how its network is asked (`selfnpo_video.cogvideox`).
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.models.base import Base, Widths
from selfnpo_core.models.sources import Source
from selfnpo_core.system.files import read_json
from selfnpo_core.training.recipe import Presets
from selfnpo_video.models import KnownVideoModel, known_as
from selfnpo_video.shapes import ClipSize, Compression

PARTS = ("transformer", "vae", "text_encoder")
"""Components with weights."""


@dataclass(frozen=True, kw_only=True)
class VideoKind:
    """A family, without its behaviour.

    title, wants: for messages; wants says which `schedulers` there are. example: a known model, whose defaults hold for
    those that are not known. presets: to train with, for a network of this width; paper: as `--config paper` has it.
    pipeline, from_image: the stock pipelines, from text alone and with an image. scheduler: configuration of the known
    models', as far as what they need depends on it.
    """

    name: str
    title: str
    example: str
    presets: Presets
    paper: Presets
    width: int
    pipeline: Any
    from_image: Any
    network: Any
    vae: Any
    schedulers: Mapping[str, Any]
    wants: str
    scheduler: Mapping[str, Any]

    @property
    def pipelines(self) -> tuple[str, str]:
        """As model_index.json names them."""
        return self.pipeline.__name__, self.from_image.__name__


@dataclass(frozen=True, kw_only=True)
class VideoBase(Base):
    """A video model that was found and looked at.

    known: the model of the table that it is, or by its configuration was made from. from_image: whether it wants a
    clip's first frame. transformer, vae: their configurations, what is left out filled in; scheduler: as it is on disk.
    """

    kind: VideoKind
    known: KnownVideoModel | None = None
    from_image: bool
    transformer: Any
    vae: Any
    scheduler: Mapping[str, Any]

    @property
    def widths(self) -> Widths | None:
        if self.shipped:
            return None
        return Widths(
            family=self.kind.width, base=self.transformer.num_attention_heads * self.transformer.attention_head_dim
        )

    @property
    def pipeline(self) -> Any:
        """Class of the stock pipeline."""
        return self.kind.from_image if self.from_image else self.kind.pipeline

    @property
    def folder(self) -> Path:
        """Of a model on this disk (`selfnpo_video.loading.local`)."""
        assert self.source.kind == "folder", f"{self.name} is not on this disk"
        return Path(self.source.location)

    @property
    def compression(self) -> Compression:
        return Compression.of(self.transformer, self.vae)

    @property
    def size(self) -> ClipSize:
        """What it was made for: a known model's own size, else what its configuration says."""
        if self.known is not None:
            return self.known.size
        space, config = 8, self.transformer
        return ClipSize(
            frames=config.sample_frames, height=config.sample_height * space, width=config.sample_width * space
        )

    def size_of(self, frames: int | None, height: int | None, width: int | None) -> ClipSize:
        """A clip as it was asked for; `None` is what the model was made for."""
        own = self.size
        return ClipSize(frames=frames or own.frames, height=height or own.height, width=width or own.width)


def look(source: Source, folder: Path, kinds: Collection[VideoKind]) -> VideoBase:
    """What the configurations in a diffusers folder tell of a model; one on this disk must have its weights there too.

    Raises `InputError` for one that is of none of these kinds, or has pickled weights only.
    """
    kind, pipeline = _kind_of(folder, source.name, kinds)
    if source.kind == "folder":
        _check_weights(folder, source.name)
    transformer, vae, scheduler = (read_config(folder, part, source.name) for part in (*PARTS[:2], "scheduler"))
    return VideoBase(
        source=source,
        family=kind.name,
        kind=kind,
        known=known_as(source.name, transformer),
        from_image=pipeline == kind.from_image.__name__,
        transformer=with_defaults(kind.network, transformer),
        vae=with_defaults(kind.vae, vae),
        scheduler=scheduler,
    )


def read_config(folder: Path, part: str, name: str) -> dict[str, Any]:
    """Configuration of a component, as it is on disk."""
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    try:
        values: dict[str, Any] = read_json(file)
        return values
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"model {name} has no readable {part}/{file.name} ({detail}): get it again") from None


def with_defaults(model: Any, values: Mapping[str, Any]) -> SimpleNamespace:
    """A model's configuration with the defaults of its class, as attributes."""
    defaults = {n: p.default for n, p in inspect.signature(model.__init__).parameters.items() if n != "self"}
    return SimpleNamespace(**{**defaults, **values})


def _kind_of(folder: Path, name: str, kinds: Collection[VideoKind]) -> tuple[VideoKind, str]:
    """By the class of the pipeline in model_index.json, which is returned too."""
    titles = " or ".join(kind.title for kind in kinds)
    try:
        found = read_json(folder / "model_index.json").get("_class_name")
    except FileNotFoundError:
        raise InputError(f"model {name} has no model_index.json: give a diffusers folder of {titles}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}/model_index.json is damaged ({error}): get the model again") from None
    for kind in kinds:
        if found in kind.pipelines:
            return kind, found
    examples = " or ".join(kind.example for kind in kinds)
    raise InputError(f"model {name} is a {found}, not {titles}: give one that is, such as {examples}")


def _check_weights(folder: Path, name: str) -> None:
    """Raise `InputError` unless all weights are there as safetensors."""
    for part in PARTS:
        if not any((folder / part).glob("*.safetensors")):
            pickled = any(p.suffix in (".bin", ".pt", ".pth", ".ckpt") for p in (folder / part).glob("*"))
            problem = "only pickled weights, which can run code when loaded" if pickled else "no weights"
            raise InputError(f"model {name} has {problem} in {part}: get it as safetensors")
