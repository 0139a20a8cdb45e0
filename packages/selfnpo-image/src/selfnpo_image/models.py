"""The models that go by a name, and where any SD1.5-family model is found."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from selfnpo_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model of the built-in list. `parameters` counts the UNet's; `memory` is filled by measurements only."""

    name: str
    source: str
    licence: str
    parameters: str
    prediction_type: str
    dtype: str
    memory: str = "—"
    note: str = ""


KNOWN = (
    KnownModel(
        name="demo",
        source="shipped with selfnpo-image",
        licence="Apache-2.0",
        parameters="2.8 M",
        prediction_type="epsilon",
        dtype="fp32",
        note="a toy that draws shapes at 64×64",
    ),
    KnownModel(
        name="sd15",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        licence="CreativeML OpenRAIL-M",
        parameters="860 M",
        prediction_type="epsilon",
        dtype="fp16",
        note="Stable Diffusion 1.5",
    ),
    KnownModel(
        name="dreamshaper",
        source="Lykon/dreamshaper-8",
        licence="CreativeML OpenRAIL-M",
        parameters="860 M",
        prediction_type="epsilon",
        dtype="fp16",
        note="a preference-tuned SD1.5",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a model is: a diffusers folder, a single file, or a hub id."""

    name: str
    folder: Path | None = None
    file: Path | None = None
    hub_id: str | None = None


def locate(model: str) -> Location:
    """A known name, a folder, a .safetensors file, or `owner/name` on the hub. Loads nothing."""
    if model == "demo":
        from selfnpo_image.demo.assets import model_folder

        return Location(name=model, folder=model_folder())
    for known in KNOWN:
        if model == known.name:
            return Location(name=model, hub_id=known.source)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(f"{model} is no diffusers folder (it has no model_index.json): give the pipeline's folder")
        return Location(name=model, folder=path)
    if path.suffix in {".ckpt", ".pt", ".pth", ".bin", ".pkl"}:
        raise InputError(f"{model} is a pickle, which can run code when loaded: convert it to .safetensors")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise InputError(f"{model} is no .safetensors file: give a diffusers folder or a .safetensors checkpoint")
        return Location(name=model, file=path)
    if path.suffix == ".safetensors" or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise InputError(_unknown(model))
    return Location(name=model, hub_id=model)


def _unknown(model: str) -> str:
    names = [known.name for known in KNOWN]
    near = difflib.get_close_matches(model, names, n=1)
    hint = (
        f"did you mean '{near[0]}'?" if near else f"use {', '.join(names)}, a folder, a .safetensors file or a hub id"
    )
    return f"model '{model}' is neither a known name nor a file or folder: {hint}"
