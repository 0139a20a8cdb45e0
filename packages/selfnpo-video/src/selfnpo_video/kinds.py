"""What a family of video models is, and what the configurations of one model tell, before weights are read.

A family is one file: a `VideoKind`, and the backbone that says how its network is asked (`selfnpo_video.cogvideox`).
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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

    def scheduler_named(self, word: str) -> Any:
        """Class of the scheduler that goes by a short word, such as dpm."""
        return next(made for name, made in self.schedulers.items() if word in name.lower())


@dataclass(frozen=True, kw_only=True)
class VideoBase(Base):
    """A video model that was found and looked at.

    known: the model of the table that it is, or by its configuration was made from. from_image: whether it wants a
    clip's first frame. transformer, vae: their configurations, what is left out filled in; scheduler: as it is on disk,
    or as zero terminal SNR wants it. weights: of a folder's components.
    """

    kind: VideoKind
    known: KnownVideoModel | None = None
    from_image: bool
    transformer: Any
    vae: Any
    scheduler: Mapping[str, Any]
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
        return Compression.of(self.transformer, self.vae)

    @property
    def size(self) -> ClipSize:
        """What it was made for: a known model's own size, else what its configuration says."""
        if self.known is not None:
            return self.known.size
        space, config = self.compression.space, self.transformer
        frames, height, width = config.sample_frames, config.sample_height, config.sample_width
        if frames is None or height is None or width is None:
            raise InputError(
                f"model {self.name} does not say what size it was made for (sample_frames, sample_height, sample_width "
                "in transformer/config.json): give frames, height and width"
            )
        return ClipSize(frames=frames, height=height * space, width=width * space)

    @property
    def trained_frames(self) -> int | None:
        """Of the clips that it was trained on; `None` where nothing says so."""
        frames: int | None = self.known.size.frames if self.known is not None else self.transformer.sample_frames
        return frames

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
    kind, pipeline = _kind_of(folder, source.name, kinds)
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
        from_image=pipeline == kind.from_image.__name__,
        transformer=with_defaults(kind.network, transformer),
        vae=with_defaults(kind.vae, vae),
        scheduler=_scheduler(kind, scheduler, source.name),
        weights=weights,
    )
    _check_numbers(base)
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


def _kind_of(folder: Path, name: str, kinds: Collection[VideoKind]) -> tuple[VideoKind, str]:
    """By the class of the pipeline in model_index.json, which is returned too."""
    titles = " or ".join(kind.title for kind in kinds)
    try:
        found = read_json(folder / "model_index.json").get("_class_name")
    except FileNotFoundError:
        what = folder_kind(folder)
        what = f", {what}" if what else f": give a diffusers folder of {titles}"
        raise InputError(f"model {name} has no model_index.json{what}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}/model_index.json is damaged ({error}): get the model again") from None
    for kind in kinds:
        if found in kind.pipelines:
            return kind, found
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


def _check_numbers(base: VideoBase) -> None:
    """Raise `InputError` for what is no number in a configuration where sizes are calculated with it."""
    config = base.transformer
    always = ["patch_size", "max_text_seq_length", "text_embed_dim", "out_channels"]
    always += ["num_attention_heads", "attention_head_dim"]
    sizes = ["sample_frames", "sample_height", "sample_width"]
    fixed = config.use_learned_positional_embeddings or config.patch_size_t is not None
    wanted = [(config, "transformer", key, fixed) for key in sizes]
    wanted += [(config, "transformer", key, True) for key in always]
    wanted += [(base.vae, "vae", key, True) for key in ("temporal_compression_ratio", "sample_height", "sample_width")]
    for values, part, key, needed in wanted:
        value = getattr(values, key)
        if value is None and not needed:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
            raise InputError(f"model {base.name} has {key} {value} in {part}/config.json: correct it to a number")
    if not isinstance(base.vae.block_out_channels, list | tuple):
        raise InputError(f"model {base.name} has no list of block_out_channels in vae/config.json: correct it")
