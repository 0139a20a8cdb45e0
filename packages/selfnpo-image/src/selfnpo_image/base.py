"""A base model that makes pictures: `selfnpo_image.families.find_base` finds it and looks at it, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.models.base import Base, Widths
from selfnpo_core.models.sources import KnownModel, Source
from selfnpo_core.system.files import read_json
from selfnpo_image.kinds import Kind, Shapes


@dataclass(frozen=True, kw_only=True)
class ImageBase(Base):
    """What was read of a model when it was found; no weights are.

    network: the denoiser's configuration; `None` while the model is on the hub. shapes: of a single file's tensors.
    variant: "fp16" where a folder has only such files.
    """

    kind: Kind
    network: Mapping[str, Any] | None = None
    shapes: Shapes = field(default_factory=dict)
    variant: str | None = None

    @property
    def widths(self) -> Widths | None:
        if self.network is None or self.shipped:
            return None
        own = self.kind.width_of(self.network)
        return None if own is None else Widths(family=self.kind.width, base=own)

    def must_be(self, kind: Kind) -> None:
        """Raise `InputError` unless the model is of this family."""
        if self.kind.name != kind.name:
            raise kind.wrong(self.name, f"an {self.kind.title} model")


def of_folder(source: Source, kind: Kind, known: KnownModel | None) -> ImageBase:
    """A diffusers folder of this family, checked: its network's configuration, and that all weights are safetensors."""
    folder, name = Path(source.location), source.name
    network = read_config(folder / kind.denoiser / "config.json", name)
    check_network(kind, network, name)
    for part in kind.parts:
        if part in kind.optional and not (folder / part).is_dir():
            continue
        if not any((folder / part).glob("*.safetensors")):
            pickled = any(p.suffix in (".bin", ".pt", ".pth", ".ckpt") for p in (folder / part).glob("*"))
            problem = "only pickled weights, which can run code when loaded" if pickled else "no weights"
            raise InputError(f"model {name} has {problem} in {part}: get it as safetensors")
    variant = _variant(folder / kind.denoiser)
    return ImageBase(source=source, family=kind.name, known=known, kind=kind, network=network, variant=variant)


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
        raise InputError(f"model {name} has no {part}: give a diffusers folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): get the model again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: get the model again")
    return value


def _variant(folder: Path) -> str | None:
    plain, half = (list(folder.glob(f"diffusion_pytorch_model{infix}*.safetensors")) for infix in ("", ".fp16"))
    return "fp16" if half and len(plain) == len(half) else None
