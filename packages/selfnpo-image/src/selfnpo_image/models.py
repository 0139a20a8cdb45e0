"""Known base models, and what a name given to `--model` stands for.

A name is, in this order: one of the table, an existing folder or file, or a hub id "owner/name".
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfnpo_core.errors import InputError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A line of the table that `models` prints."""

    name: str
    hub_id: str | None
    about: str
    licence: str
    parameters: int
    """Of the denoiser."""
    prediction_type: str
    dtype: str
    """The narrowest one that gives good pictures."""
    guidance_scale: float = 7.5
    steps: int = 25
    memory: str | None = None
    """As measured; `None` where it has not been."""


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="demo",
            hub_id=None,
            about="ships with the package: 64×64 pictures of coloured shapes",
            licence="Apache-2.0",
            parameters=2_800_000,
            prediction_type="epsilon",
            dtype="fp32",
            guidance_scale=3.0,
        ),
        KnownModel(
            name="sd15",
            hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
            about="Stable Diffusion 1.5",
            licence="CreativeML Open RAIL-M",
            parameters=859_520_964,
            prediction_type="epsilon",
            dtype="fp16",
        ),
        KnownModel(
            name="dreamshaper",
            hub_id="Lykon/dreamshaper-8",
            about="DreamShaper 8, a preference-tuned SD1.5",
            licence="CreativeML Open RAIL-M",
            parameters=859_520_964,
            prediction_type="epsilon",
            dtype="fp16",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from. `name` is what the user called it, `location` a folder, a file or a hub id."""

    name: str
    kind: Literal["folder", "file", "hub"]
    location: str
    config: Path | None = None
    """For a file: a diffusers folder whose configurations and tokenizer fit it."""


def find_source(name: str, config: str | Path | None = None) -> Source:
    """What `--model NAME` stands for; nothing is loaded. `config`: see `Source`."""
    if name in KNOWN:
        source = _known(KNOWN[name])
    elif Path(name).expanduser().exists():
        source = _local(name, Path(name).expanduser())
    elif name.endswith((".safetensors", *PICKLES)) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model {name} does not exist: give a diffusers folder or a .safetensors file")
    elif _HUB_ID.fullmatch(name):
        source = Source(name=name, kind="hub", location=name)
    else:
        raise InputError(f"unknown model '{name}': {_hint(name)}, or give a folder, a file or a hub id owner/name")
    return source if config is None else _with_config(source, Path(config).expanduser())


def defaults(name: str) -> KnownModel:
    """Sampling defaults of a model; those of SD1.5 for one that is not known."""
    return KNOWN.get(name, KNOWN["sd15"])


def _known(model: KnownModel) -> Source:
    if model.hub_id is not None:
        return Source(name=model.name, kind="hub", location=model.hub_id)
    from selfnpo_image.demo.assets import model_folder

    return Source(name=model.name, kind="folder", location=str(model_folder()))


def _local(name: str, path: Path) -> Source:
    if path.is_dir():
        return Source(name=name, kind="folder", location=str(path))
    if path.suffix in PICKLES:
        raise InputError(f"{name} is a pickle, which can run code when loaded: convert it to .safetensors")
    if path.suffix != ".safetensors":
        raise InputError(f"model {name} is neither a folder nor a .safetensors file: give one of these")
    return Source(name=name, kind="file", location=str(path))


def _with_config(source: Source, config: Path) -> Source:
    if source.kind != "file":
        raise InputError(f"--model-config is for a single .safetensors file, and {source.name} is none: leave it out")
    if not (config / "model_index.json").is_file():
        raise InputError(f"--model-config {config} is not a diffusers folder (no model_index.json): give one")
    return Source(name=source.name, kind="file", location=source.location, config=config)


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(KNOWN)}"
