"""A base model that makes pictures: `selfnpo_image.families.find_base` finds it and looks at it, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.models.base import Base, Widths
from selfnpo_core.models.components import Weights, find_weights, header_of
from selfnpo_core.models.contents import folder_kind
from selfnpo_core.models.headers import Header
from selfnpo_core.models.quantised import check_config
from selfnpo_core.models.sources import KnownModel, Source
from selfnpo_core.system.files import read_json
from selfnpo_image.kinds import Kind, Shapes


@dataclass(frozen=True, kw_only=True)
class ImageBase(Base):
    """What was read of a model when it was found; no weights are.

    network: the denoiser's configuration; `None` while the model is on the hub. header: a single file's, or that of a
    folder's denoiser. weights: a folder's, by component. says_distilled: its configurations say that it is.
    """

    kind: Kind
    network: Mapping[str, Any] | None = None
    header: Header = field(default_factory=Header)
    weights: Mapping[str, Weights] = field(default_factory=dict)
    says_distilled: bool = False

    @property
    def distilled(self) -> bool:
        return self.says_distilled or super().distilled

    @property
    def shapes(self) -> Shapes:
        return self.header.shapes

    @property
    def variants(self) -> dict[str, str]:
        """Of a folder's components that exist only as one, such as fp16."""
        return {part: weights.variant for part, weights in self.weights.items() if weights.variant is not None}

    @property
    def widths(self) -> Widths | None:
        if self.network is None or self.shipped:
            return None
        own = self.kind.width_of(self.network)
        return None if own is None else Widths(family=self.kind.width, base=own)

    def must_be(self, kind: Kind) -> None:
        """Raise `InputError` unless the model is of this family."""
        if self.kind.name != kind.name:
            raise kind.wrong(self.name, f"{self.kind.one} model")


def of_folder(source: Source, kind: Kind, known: KnownModel | None) -> ImageBase:
    """A diffusers folder of this family, checked: its network's configuration, and that all weights are safetensors."""
    folder, name = Path(source.location), source.name
    network = read_config(folder / kind.denoiser / "config.json", name)
    check_network(kind, network, name)
    weights: dict[str, Weights] = {}
    for part in kind.parts:
        if part in kind.optional and not (folder / part).is_dir():
            continue
        if (config := folder / part / "config.json").is_file():
            check_config(read_config(config, name), config)
        weights[part] = find_weights(folder, part, name, source.variant)
    header = header_of(folder / kind.denoiser, weights[kind.denoiser])
    return ImageBase(
        source=source, family=kind.name, known=known, kind=kind, network=network, header=header, weights=weights
    )


def check_network(kind: Kind, config: Mapping[str, Any], name: str) -> None:
    """The denoiser's config.json tells inpainting, refining and distilled networks from ours."""
    if config.get("_class_name", kind.network) != kind.network:
        raise kind.wrong(name, f"built on a {config['_class_name']}")
    kind.check(kind, config, name)


def read_config(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of a diffusers folder."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        part = f"{path.parent.name}/{path.name}" if path.name == "config.json" else path.name
        what = folder_kind(path.parent) if path.name == "model_index.json" else None
        raise InputError(f"model {name} has no {part}{f', {what}' if what else ': give a diffusers folder'}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): get the model again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: get the model again")
    return value
