"""Every family of video models, and which of them a model is of: the only file that knows them all."""

from pathlib import Path

from selfnpo_core.errors import InputError
from selfnpo_core.models.contents import file_kind
from selfnpo_core.models.headers import read_header
from selfnpo_core.models.sources import Source
from selfnpo_core.training.presets import for_width
from selfnpo_core.training.recipe import Presets
from selfnpo_video import recipes
from selfnpo_video.backbone import VideoBackbone
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.kinds import VideoBase, look, with_defaults
from selfnpo_video.loading import CONFIGS, fetched
from selfnpo_video.models import KNOWN, KnownVideoModel, architecture, beside, find_source
from selfnpo_video.wan import Wan

BACKBONES: dict[str, type[VideoBackbone]] = {made.kind.name: made for made in (CogVideoX, Wan)}
KINDS = {name: backbone.kind for name, backbone in BACKBONES.items()}


def find_base(name: str, config: str | Path | None = None) -> VideoBase:
    """What `--model NAME` stands for, found and looked at once; what asks of the model later is handed this.

    No weights are read or fetched. Of a known model on the hub this package's table tells; of any other there the
    configurations are fetched.

    Raises `InputError` for what cannot be found, is of another family, or has pickled weights only.
    """
    return base_of(find_source(name, config))


def base_of(source: Source) -> VideoBase:
    """As `find_base`, of a model that was found."""
    if source.kind == "file":
        titles = " or ".join(kind.title for kind in KINDS.values())
        what = file_kind(read_header(Path(source.location)).shapes) if Path(source.location).stat().st_size else None
        if what is not None:
            raise InputError(f"model {source.name} is {what}: give a diffusers folder of {titles}")
        raise InputError(f"model {source.name} is a single file: {titles} comes in diffusers folders, give one")
    if source.kind == "folder":
        return look(source, Path(source.location), KINDS.values())
    known = next((model for model in KNOWN.values() if source.location == model.hub_id), None)
    return look(source, fetched(source, CONFIGS), KINDS.values()) if known is None else _told(source, known)


def presets_for(base: VideoBase, name: str | None = None) -> Presets:
    """Training presets, the default ones or those of a name: the shipped model has its own, any other its family's.

    Those by default are for the base's width. A LoRA is trained in the bits that a known model is sampled in.
    """
    assert name in (None, "paper"), name
    if base.shipped:
        return recipes.DEMO_PAPER if name else recipes.DEMO
    presets = base.kind.paper if name else for_width(base.kind.presets, base.widths)
    return presets if base.known is None else recipes.in_bits_of(presets, base.known.dtype)


def backbone_of(base: VideoBase) -> type[VideoBackbone]:
    """The class that trains models of the base's family."""
    return BACKBONES[base.family]


def _told(source: Source, known: KnownVideoModel) -> VideoBase:
    """Of a known model on the hub, by the table."""
    kind = KINDS[known.family]
    return VideoBase(
        source=source,
        family=kind.name,
        kind=kind,
        known=known,
        from_image=known.from_image,
        transformer=with_defaults(kind.network, architecture(known.name)),
        vae=with_defaults(kind.vae, beside(known.name, "vae")),
        scheduler={**kind.scheduler, **beside(known.name, "scheduler")},
        index=beside(known.name, "index"),
    )
