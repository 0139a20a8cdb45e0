"""From what a user calls a model to a stock pipeline on the CPU.

Weights are safetensors only, no remote code is run, and no safety checker is loaded.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import CLIPTokenizer

from selfnpo_core.errors import InputError
from selfnpo_core.models.loading import one_line_errors, quiet
from selfnpo_core.models.sources import Source
from selfnpo_core.sampling import preference
from selfnpo_core.sampling.preference import Preference
from selfnpo_image import single_file
from selfnpo_image.demo.assets import PREFERRED
from selfnpo_image.families import (
    Kind,
    backbone_of,
    check_network,
    check_scheduler,
    kind_of_file,
    kind_of_folder,
    kind_of_index,
    read_config,
)
from selfnpo_image.models import KNOWN, find_source
from selfnpo_image.single_file import configs_for, prepared, tensor_shapes

SMALLEST_VOCABULARY = 512
"""CLIP's tokenizer knows every byte, at a word's end and before it. One that was loaded without files is empty."""


def load_pipeline(
    model: Source | str, *, kind: Kind | None = None, dtype: torch.dtype = torch.float32, **components: Any
) -> Any:
    """The stock pipeline of a model, on the CPU. Components that are given (`unet=…`) are not read from disk.

    kind: raise unless the model is of this family. Raises `InputError` for what cannot be found, is of no family that
    is known, or has pickled weights only.
    """
    source = local(find_source(model) if isinstance(model, str) else model, kind)
    kind = kind_of(source)
    made: Any = kind.pipeline
    with quiet(), one_line_errors(source):
        if source.kind == "file":
            with prepared(source, kind) as settings:
                given = {**kind.left_out, **settings, **components}
                pipe = made.from_single_file(source.location, torch_dtype=dtype, **given)
        else:
            pipe = made.from_pretrained(
                source.location,
                torch_dtype=dtype,
                use_safetensors=True,
                variant=_variant(Path(source.location), kind),
                **{**kind.left_out, **_missing(Path(source.location), kind), **components},
            )
    _check_whole(pipe, source, kind, components)
    check_scheduler(pipe.scheduler, kind, source.name)
    pipe.register_to_config(_name_or_path=source.name)
    return pipe


def kind_of(source: Source) -> Kind:
    """The family of a model. Of one on the hub only its index is fetched."""
    if source.kind == "file":
        return kind_of_file(tensor_shapes(Path(source.location)), source.name)
    if source.kind == "folder":
        return kind_of_folder(Path(source.location), source.name)
    with quiet(), one_line_errors(source):
        index = hf_hub_download(source.location, "model_index.json")
    return kind_of_index(read_config(Path(index), source.name), source.name)


def network_config(source: Source, kind: Kind) -> dict[str, Any]:
    """The denoiser's configuration; no weights are read."""
    if source.kind == "file" and source.config is None:
        assert kind.layout is not None
        return configs_for(kind.layout, {})["unet/config.json"]
    place = f"{kind.denoiser}/config.json"
    if source.kind == "hub":
        with quiet(), one_line_errors(source):
            return read_config(Path(hf_hub_download(source.location, place)), source.name)
    return read_config((source.config or Path(source.location)) / place, source.name)


def known_configs(source: Source) -> tuple[str, Mapping[str, Mapping[str, Any]] | None]:
    """A model's family and its configurations by place in a diffusers folder, as far as nothing must be fetched."""
    if source.kind == "hub":
        known = next((model for model in KNOWN.values() if source.name in (model.name, model.hub_id)), None)
        layout = None if known is None else backbone_of(known.family).kind.layout
        return ("", None) if known is None or layout is None else (known.family, layout.configs)
    kind, folder = kind_of(source), source.config or Path(source.location)
    if source.kind == "file" and source.config is None:
        assert kind.layout is not None
        return kind.name, configs_for(kind.layout, tensor_shapes(Path(source.location)))
    places = (f"{kind.denoiser}/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    return kind.name, {place: read_config(folder / place, source.name) for place in places}


def local(source: Source, kind: Kind | None = None) -> Source:
    """The same model on this disk, checked: a hub id is fetched, into the hub's own cache."""
    found = kind_of(source)
    if kind is not None and found.name != kind.name:
        raise kind.wrong(source.name, f"an {found.title} model")
    if source.kind != "hub":
        return source
    with quiet(), one_line_errors(source):
        config = hf_hub_download(source.location, f"{found.denoiser}/config.json")
        check_network(found, read_config(Path(config), source.name), source.name)
        folder = found.pipeline.download(source.location, use_safetensors=True, **found.left_out)
    source = replace(source, kind="folder", location=str(folder))
    kind_of(source)
    return source


def encoder_files(source: Source, kind: Kind) -> dict[str, Path]:
    """What a local model's text encoders are read from, by names that do not depend on the place.

    Raises `InputError` for weights that are not whole, since those of text encoders may not be read before training.
    """
    if source.kind == "file":
        config = source.config
        own = {f"{part}/config.json": config / part / "config.json" for part in kind.text_encoders} if config else {}
        return {"checkpoint": Path(source.location), "layout": Path(single_file.__file__), **own}
    folder, variant = Path(source.location), _variant(Path(source.location), kind) or ""
    files = [path for part in kind.text_encoders for path in sorted((folder / part).glob("*"))]
    for path in files:
        if path.suffix == ".safetensors":
            tensor_shapes(path)
    return {
        f"{path.relative_to(folder).as_posix()} {variant}".rstrip(): path
        for path in files
        if path.suffix in (".json", ".safetensors")
    }


def find_preference(name: str, pipe: Any) -> Preference:
    """What `--preference` stands for, for a pipeline that is loaded: see `selfnpo_core.sampling.preference`."""
    kind = kind_of_index({"_class_name": type(pipe).__name__}, pipe.name_or_path)

    def whole(source: Source) -> Any:
        return getattr(load_pipeline(source, kind=kind), kind.denoiser)

    if name == "demo-preferred":
        return Preference(name=name, lora=PREFERRED)
    network = type(getattr(pipe, kind.denoiser))
    return preference.find(name, network=network, component=kind.denoiser, locate=find_source, whole=whole)


def _variant(folder: Path, kind: Kind) -> str | None:
    """ "fp16" where a folder has only such files."""
    plain, half = (
        list((folder / kind.denoiser).glob(f"diffusion_pytorch_model{infix}*.safetensors")) for infix in ("", ".fp16")
    )
    return "fp16" if half and len(plain) == len(half) else None


def _missing(folder: Path, kind: Kind) -> dict[str, None]:
    """Optional text encoders that the model comes without, and their tokenizers."""
    gone = [part for part in kind.optional if not (folder / part).is_dir()]
    return dict.fromkeys([*gone, *(part.replace("text_encoder", "tokenizer") for part in gone)])


def _check_whole(pipe: Any, source: Source, kind: Kind, given: Mapping[str, Any]) -> None:
    for part in kind.parts:
        module = getattr(pipe, part)
        if module is None and (part in kind.optional or part in given):
            continue
        if module is None or any(tensor.is_meta for tensor in module.parameters()):
            raise InputError(f"model {source.name} lacks weights of its {part}: get the whole checkpoint")
    for part in kind.text_encoders:
        tokenizer = getattr(pipe, name := part.replace("text_encoder", "tokenizer"))
        if isinstance(tokenizer, CLIPTokenizer) and len(tokenizer) < SMALLEST_VOCABULARY:
            raise InputError(f"model {source.name} lacks its {name}'s files: get the whole model")
