"""What a family of video models is, and what the configurations of one model tell, before weights are read.

A family is one file: a `VideoKind`, and the backbone that says how its network is asked (`selfnpo_video.cogvideox`).
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.models.base import Base, Widths
from selfnpo_core.models.components import Weights, find_weights, header_of
from selfnpo_core.models.contents import folder_kind
from selfnpo_core.models.loading import one_line_errors
from selfnpo_core.models.quantised import check_config
from selfnpo_core.models.sources import Source
from selfnpo_core.models.stated import check_agree, settled, stated_in
from selfnpo_core.system.files import read_json
from selfnpo_core.training.recipe import Presets
from selfnpo_video.models import KnownVideoModel, known_as
from selfnpo_video.positions import TimeAxis
from selfnpo_video.shapes import ClipSize, Compression

PARTS = ("transformer", "vae", "text_encoder")
"""Components with weights."""
SCHEDULERS = ("ddim", "dpm", "unipc", "euler")
"""Short words for schedulers, each a part of the name of its class."""


@dataclass(frozen=True, kw_only=True)
class VideoKind(ABC):
    """A family of video models: what it is, and what all that is not its backbone asks of it.

    title, wants: for messages; wants says which `schedulers` there are. example: a known model, whose defaults hold for
    those that are not known. presets: to train with, for a network of this width; paper: as `--config paper` has it.
    pipeline, from_image: the stock pipelines, from text alone and with an image, if there is one. refused: other
    pipelines' names, and what their models are. encoder, encoder_config: the text encoder's class, and its
    configuration in known models. scheduler: configuration of the known models', as far as what they need depends on
    it. time: where a clip's frames are in what the network takes. vae_dtype: of the VAE, whatever the network is in.
    branches_together: whether the pipeline asks both branches in one forward.
    """

    name: str
    title: str
    example: str
    presets: Presets
    paper: Presets
    width: int
    pipeline: Any
    from_image: Any = None
    refused: Mapping[str, str] = field(default_factory=dict)
    network: Any
    vae: Any
    encoder: Any
    encoder_config: Mapping[str, Any]
    schedulers: Mapping[str, Any]
    wants: str
    scheduler: Mapping[str, Any]
    time: TimeAxis
    vae_dtype: torch.dtype | None = None
    branches_together: bool = True
    null: str = ""
    """What the stock pipeline gives its negative branch when it is given no negative prompt."""

    @property
    def pipelines(self) -> tuple[str, ...]:
        """As model_index.json names them."""
        return tuple(made.__name__ for made in (self.pipeline, self.from_image) if made is not None)

    @abstractmethod
    def compression(self, transformer: Any, vae: Any) -> Compression:
        """How clips are packed, by the configurations of network and VAE."""

    @abstractmethod
    def text(self, transformer: Any) -> tuple[int, int]:
        """Tokens of a prompt and their width, by the network's configuration."""

    @abstractmethod
    def check(self, base: "VideoBase") -> None:
        """Raise `InputError` for what is no number where sizes are calculated, and for what only looks like one."""

    def check_index(self, index: Mapping[str, Any], name: str) -> None:
        """Raise `InputError` for a model_index.json of what is not supported. name: of the model."""
        return

    @abstractmethod
    def predicts(self, scheduler: Any, name: str) -> str:
        """The prediction type that a scheduler is for. Raises `InputError` for one that does not fit the family."""

    @abstractmethod
    def rescheduled(self, scheduler: Any, word: str) -> Any:
        """In a scheduler's place the one that goes by a short word, such as dpm."""

    def check_scheduler_word(self, word: str) -> None:
        """Raise `InputError` for one that the family has not."""
        words = [each for name in self.schedulers for each in SCHEDULERS if each in name.lower()]
        if word != "auto" and word not in words:
            raise InputError(f"--scheduler {word} is unknown for {self.title}: use auto, {' or '.join(words)}")

    @abstractmethod
    def call(self, config: Any, *, dynamic_guidance: bool) -> dict[str, Any]:
        """What the pipeline is called with beside what all are. config: the network's."""

    def one_at_a_time(self, scheduler: Any) -> bool:
        """Whether a scheduler draws noise from one generator for a whole batch, so that a batch is one clip."""
        return False

    @abstractmethod
    def encode(self, encoder: Any, tokenizer: Any, text: str, tokens: int, device: torch.device) -> Tensor:
        """(tokens, D): what the network is told of a text, as the pipeline makes it."""

    @abstractmethod
    def use_attention(self, network: Any, name: str, device: torch.device, dtype: torch.dtype) -> str:
        """Have the network's attention computed by what goes by this name; returns what was chosen, and logs why.

        Raises `InputError` for a name that does not exist.
        """

    @abstractmethod
    def denoising_bytes(self, base: "VideoBase", *, rows: int, patches: int, itemsize: int) -> int:
        """What a forward of so many rows holds beside the weights, at its peak. patches: of a clip."""

    @abstractmethod
    def decoding_bytes(self, vae: Any, size: ClipSize, dtype: torch.dtype, device: str, *, tiling: bool) -> int:
        """What decoding one clip holds beside the VAE's weights, at its peak. device: its type, "cpu", "cuda"."""


@dataclass(frozen=True, kw_only=True)
class VideoBase(Base):
    """A video model that was found and looked at.

    known: the model of the table that it is, or by its configuration was made from. from_image: whether it wants a
    clip's first frame. transformer, vae: their configurations, what is left out filled in; scheduler: as it is on disk,
    or as zero terminal SNR wants it. index: of model_index.json, what is no component. weights: of a folder's
    components.
    """

    kind: VideoKind
    known: KnownVideoModel | None = None
    from_image: bool
    transformer: Any
    vae: Any
    scheduler: Mapping[str, Any]
    index: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Weights] = field(default_factory=dict)

    @property
    def variants(self) -> dict[str, str]:
        """Of the components that exist only as one, such as fp16."""
        return {part: weights.variant for part, weights in self.weights.items() if weights.variant is not None}

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
        return self.kind.compression(self.transformer, self.vae)

    @property
    def tokens(self) -> int:
        """Of a prompt, at most."""
        return self.kind.text(self.transformer)[0]

    @property
    def size(self) -> ClipSize:
        """What it was made for: a known model's own size, else what its configuration says."""
        if self.known is not None:
            return self.known.size
        space, config = self.compression.space, self.transformer
        sizes = (getattr(config, f"sample_{side}", None) for side in ("frames", "height", "width"))
        frames, height, width = sizes
        if frames is None or height is None or width is None:
            keys = "sample_frames, sample_height, sample_width in transformer/config.json"
            where = f" ({keys})" if hasattr(config, "sample_frames") else ""
            raise InputError(
                f"model {self.name} does not say what size it was made for{where}: give frames, height and width"
            )
        return ClipSize(frames=frames, height=height * space, width=width * space)

    @property
    def trained_frames(self) -> int | None:
        """Of the clips that it was trained on; `None` where nothing says so."""
        if self.known is not None:
            return self.known.size.frames
        return getattr(self.transformer, "sample_frames", None)

    def size_of(self, frames: int | None, height: int | None, width: int | None) -> ClipSize:
        """A clip as it was asked for; `None` is what the model was made for."""
        if frames and height and width:
            return ClipSize(frames=frames, height=height, width=width)
        own = self.size
        return ClipSize(frames=frames or own.frames, height=height or own.height, width=width or own.width)


def look(source: Source, folder: Path, kinds: Collection[VideoKind]) -> VideoBase:
    """What the configurations in a diffusers folder tell of a model; one on this disk must have its weights there too.

    Raises `InputError` for one that is of none of these kinds, or has pickled weights only.
    """
    with one_line_errors(source):
        return _looked_at(source, folder, kinds)


def _looked_at(source: Source, folder: Path, kinds: Collection[VideoKind]) -> VideoBase:
    kind, index = _kind_of(folder, source.name, kinds)
    kind.check_index(index, source.name)
    transformer, vae, scheduler = (read_config(folder, part, source.name) for part in (*PARTS[:2], "scheduler"))
    if transformer.get("_class_name", kind.network.__name__) != kind.network.__name__:
        raise InputError(
            f"model {source.name} has a transformer that is a {transformer['_class_name']}, not {kind.title}'s: give "
            f"one that has, such as {kind.example}"
        )
    weights = {part: _weights(folder, part, source) for part in PARTS} if source.kind == "folder" else {}
    base = VideoBase(
        source=source,
        family=kind.name,
        kind=kind,
        known=known_as(source.plain, transformer),
        from_image=index["_class_name"] != kind.pipeline.__name__,
        transformer=with_defaults(kind.network, transformer),
        vae=with_defaults(kind.vae, vae),
        scheduler=_scheduler(kind, scheduler, source.name),
        index={key: value for key, value in index.items() if not isinstance(value, list)},
        weights=weights,
    )
    kind.check(base)
    if weights:
        stated = stated_in(header_of(folder / "transformer", weights["transformer"]), source.name)
        place = f"{source.name}/scheduler/scheduler_config.json"
        check_agree(stated, base.scheduler, f"{source.name}/transformer", place)
    return base


def read_config(folder: Path, part: str, name: str) -> dict[str, Any]:
    """Configuration of a component, as it is on disk."""
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    try:
        values = read_json(file)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        return values
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"model {name} has no readable {part}/{file.name} ({detail}): get it again") from None


def with_defaults(model: Any, values: Mapping[str, Any]) -> SimpleNamespace:
    """A model's configuration with the defaults of its class, as attributes."""
    defaults = {n: p.default for n, p in inspect.signature(model.__init__).parameters.items() if n != "self"}
    return SimpleNamespace(**{**defaults, **values})


def _kind_of(folder: Path, name: str, kinds: Collection[VideoKind]) -> tuple[VideoKind, Mapping[str, Any]]:
    """By the class of the pipeline in model_index.json, which is returned too."""
    titles = " or ".join(kind.title for kind in kinds)
    try:
        index = read_json(folder / "model_index.json")
        found = index.get("_class_name")
    except FileNotFoundError:
        what = folder_kind(folder)
        what = f", {what}" if what else f": give a diffusers folder of {titles}"
        raise InputError(f"model {name} has no model_index.json{what}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}/model_index.json is damaged ({error}): get the model again") from None
    for kind in kinds:
        if found in kind.pipelines:
            return kind, index
        if isinstance(found, str) and found in kind.refused:
            raise InputError(f"model {name} is {kind.refused[found]}: give one from text alone, such as {kind.example}")
    examples = " or ".join(kind.example for kind in kinds)
    what = f"a {found}" if isinstance(found, str) else "no diffusers pipeline"
    if isinstance(found, list):
        what = f"of a custom pipeline ({'.'.join(map(str, found))}), whose code is not run"
    raise InputError(f"model {name} is {what}, not {titles}: give one that is, such as {examples}")


def _scheduler(kind: VideoKind, config: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration as it is on disk, or as zero terminal SNR wants it; another scheduler's is refused later."""
    made = kind.schedulers.get(str(config.get("_class_name")))
    if made is None:
        return config
    scheduler = made.from_config(config)
    wanted = settled(scheduler, name, say=True)
    if wanted is scheduler:
        return config
    return {**config, "timestep_spacing": wanted.config.timestep_spacing}


def _weights(folder: Path, part: str, source: Source) -> Weights:
    """Raises `InputError` unless all are there as safetensors, and not quantised."""
    if (folder / part / "config.json").is_file():
        check_config(read_config(folder, part, source.name), folder / part / "config.json")
    return find_weights(folder, part, source.name, source.variant)


def check_numbers(name: str, wanted: Iterable[tuple[Any, str, str, bool]]) -> None:
    """Raise `InputError` for what is no number in a configuration where sizes are calculated with it.

    wanted: configuration, component, key, whether it has to be there. name: of the model.
    """
    for values, part, key, needed in wanted:
        value = getattr(values, key, None)
        if value is None and not needed:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
            raise InputError(f"model {name} has {key} {value} in {part}/config.json: correct it to a number")
