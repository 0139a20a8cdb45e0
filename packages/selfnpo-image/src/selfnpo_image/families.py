"""All families of image models, and which of them a model is of. No other file knows more than one of them.

A family is one file: a `Kind`, and a subclass of `ImageBackbone` that says how its network is asked. A model's is found
by the class of the pipeline in model_index.json, or by the names in a single file.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.models.contents import file_kind
from selfnpo_core.models.headers import read_header
from selfnpo_core.models.loading import one_line_errors
from selfnpo_core.models.sources import KnownModel, Source
from selfnpo_core.training.presets import for_width
from selfnpo_core.training.recipe import Presets
from selfnpo_image import recipes
from selfnpo_image.backbone import ImageBackbone
from selfnpo_image.base import ImageBase, check_network, of_folder, read_config
from selfnpo_image.flux2_klein import Flux2Klein
from selfnpo_image.kinds import Kind, Shapes
from selfnpo_image.loading import fetched_config, make_scheduler
from selfnpo_image.models import KNOWN, ONE_BRANCH, defaults, find_source
from selfnpo_image.qwen_image import QwenImage
from selfnpo_image.sd3 import SD3
from selfnpo_image.sd15 import SD15
from selfnpo_image.sdxl import SDXL
from selfnpo_image.single_file import of_file
from selfnpo_image.z_image import ZImage

FAMILIES: dict[str, type[ImageBackbone]] = {
    made.kind.name: made for made in (SD15, SDXL, SD3, QwenImage, ZImage, Flux2Klein)
}
_KINDS = {made.kind.pipeline.__name__: made.kind for made in FAMILIES.values()}

_FROM_PICTURES = "for editing or filling pictures, which the text-to-image model of its family is not"
_OTHER_PIPELINES = {
    "StableDiffusionXLImg2ImgPipeline": "the SDXL refiner, or made from pictures",
    **dict.fromkeys(("LatentConsistencyModelPipeline", "FluxPipeline", "Flux2Pipeline"), ONE_BRANCH),
    **dict.fromkeys(
        (
            "QwenImageEditPipeline",
            "QwenImageEditPlusPipeline",
            "QwenImageLayeredPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageControlNetPipeline",
            "ZImageOmniPipeline",
            "ZImageInpaintPipeline",
            "ZImageControlNetPipeline",
            "Flux2KleinKVPipeline",
            "Flux2KleinInpaintPipeline",
            "FluxKontextPipeline",
            "FluxFillPipeline",
        ),
        _FROM_PICTURES,
    ),
    "CogVideoXPipeline": "a video model, which selfnpo-video takes",
    "CogVideoXImageToVideoPipeline": "a video model, which selfnpo-video takes",
    "WanPipeline": "a video model, which selfnpo-video takes",
}
"""What models are of whose pipeline that is."""
TURBO_SHIFT = 3.0
"""Z-Image-Turbo's; the base model's is 6, and nothing else in their configurations differs."""


def find_base(name: str, config: str | Path | None = None) -> ImageBase:
    """What `--model NAME` stands for, found and looked at. config: see `selfnpo_core.models.sources.Source`."""
    return look(find_source(name, config))


def look(source: Source) -> ImageBase:
    """What a model is. Of one on the hub only the index is fetched, and nothing of a known one.

    Raises `InputError` for one that is of no family, or has pickled weights only.
    """
    known = next((model for model in KNOWN.values() if source.plain in (model.name, model.hub_id)), None)
    if source.kind != "hub":
        with one_line_errors(source):
            return _look_into_file(source, known) if source.kind == "file" else _look_into_folder(source, known)
    if known is not None:
        return ImageBase(source=source, family=known.family, known=known, kind=FAMILIES[known.family].kind)
    index = fetched_config(source, "model_index.json")
    kind = kind_of_index(index, source.name)
    return ImageBase(
        source=source, family=kind.name, known=known, kind=kind, says_distilled=bool(index.get("is_distilled"))
    )


def presets_for(base: ImageBase, name: str | None = None) -> Presets:
    """Training presets, the default ones or those of a name: the shipped model has its own, any other its family's.

    Those by default are for the base's width, where it is known.
    """
    if name == "paper":
        return recipes.DEMO_PAPER if base.shipped else base.kind.paper
    assert name is None, name
    if base.distilled:
        return for_width(recipes.without_guidance(base.kind.presets, defaults(base).steps), base.widths)
    return recipes.DEMO if base.shipped else for_width(base.kind.presets, base.widths)


def kind_of_index(index: Mapping[str, Any], name: str) -> Kind:
    """By the class that model_index.json names."""
    found = index.get("_class_name")
    if isinstance(found, str) and found in _KINDS:
        return _KINDS[found]
    what = f"a {found}" if isinstance(found, str) and found else "no diffusers pipeline"
    if isinstance(found, list):
        what = f"of a custom pipeline ({'.'.join(map(str, found))}), whose code is not run"
    about = _OTHER_PIPELINES.get(str(found))
    raise InputError(f"model {name} is {what}: give one of {', '.join(_KINDS)}{f' (it is {about})' if about else ''}")


def kind_of_file(shapes: Shapes, name: str) -> Kind:
    """By the names in a single-file checkpoint."""
    for kind in _KINDS.values():
        if kind.layout is not None and kind.layout.owns(shapes):
            return kind
    files = " or ".join(kind.title for kind in _KINDS.values() if kind.layout is not None)
    ours = f"give a whole checkpoint of {files}, or a diffusers folder"
    raise InputError(f"model {name} is {file_kind(shapes) or 'a file of unknown contents'}: {ours}")


def _look_into_folder(source: Source, known: KnownModel | None) -> ImageBase:
    index = read_config(Path(source.location) / "model_index.json", source.name)
    base = of_folder(source, kind_of_index(index, source.name), known)
    scheduler = make_scheduler(base, say=True)
    return replace(base, says_distilled=bool(index.get("is_distilled")) or says_distilled(base.kind, scheduler))


def says_distilled(kind: Kind, scheduler: Any) -> bool:
    """Whether a scheduler is one that only models have that run no negative branch."""
    turbo = kind.name == "z-image" and scheduler.config.get("shift") == TURBO_SHIFT
    return turbo or type(scheduler).__name__ in ("LCMScheduler", "TCDScheduler")


def _look_into_file(source: Source, known: KnownModel | None) -> ImageBase:
    header = read_header(Path(source.location))
    base = of_file(source, kind_of_file(header.shapes, source.name), header, known)
    base = base if source.config is None else _with_configs(base, source.config)
    make_scheduler(base, say=True)
    return base


def _with_configs(base: ImageBase, folder: Path) -> ImageBase:
    """A single file with the folder of configurations that its user gave with it."""
    kind, name = base.kind, str(folder)
    found = kind_of_index(read_config(folder / "model_index.json", name), name)
    if found.name != kind.name:
        raise kind.wrong(name, f"{found.one} folder")
    network = read_config(folder / kind.denoiser / "config.json", name)
    check_network(kind, network, name)
    return replace(base, network=network)
