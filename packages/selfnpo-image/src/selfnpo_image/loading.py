"""From a base model to a stock pipeline on the CPU.

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
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_image import single_file
from selfnpo_image.base import ImageBase, check_network, of_folder, read_config
from selfnpo_image.kinds import Configs, Kind
from selfnpo_image.models import is_known
from selfnpo_image.single_file import configs_for, layout_of, prepared, tensor_shapes

SMALLEST_VOCABULARY = 512
"""CLIP's tokenizer knows every byte, at a word's end and before it. One that was loaded without files is empty."""


def load_pipeline(base: ImageBase, *, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
    """The stock pipeline of a model, on the CPU. Components that are given (`unet=…`) are not read from disk.

    Raises `InputError` for weights that are not there or not whole.
    """
    base = local(base)
    source, kind = base.source, base.kind
    made: Any = kind.pipeline
    with quiet(), one_line_errors(source):
        if source.kind == "file":
            with prepared(base) as settings:
                given = {**kind.left_out, **settings, **components}
                pipe = made.from_single_file(source.location, torch_dtype=dtype, **given)
        else:
            pipe = made.from_pretrained(
                source.location,
                torch_dtype=dtype,
                use_safetensors=True,
                variant=base.variant,
                **{**kind.left_out, **_missing(Path(source.location), kind), **components},
            )
    _check_whole(pipe, base, components)
    check_scheduler(pipe.scheduler, kind, source.name)
    pipe.register_to_config(_name_or_path=source.name)
    return pipe


def local(base: ImageBase) -> ImageBase:
    """The same model on this disk: what is on the hub is fetched, into the hub's own cache, and checked."""
    source, kind = base.source, base.kind
    if source.kind != "hub":
        return base
    check_network(kind, fetched_config(source, f"{kind.denoiser}/config.json"), base.name)
    with quiet(), one_line_errors(source):
        folder = kind.pipeline.download(source.location, use_safetensors=True, **kind.left_out)
    return of_folder(replace(source, kind="folder", location=str(folder)), kind, base.known)


def fetched_config(source: Source, place: str) -> dict[str, Any]:
    """One configuration of a model on the hub."""
    with quiet(), one_line_errors(source):
        return read_config(Path(hf_hub_download(source.location, place)), source.name)


def network_config(base: ImageBase) -> Mapping[str, Any]:
    """The denoiser's configuration; no weights are read."""
    if base.network is not None:
        return base.network
    return fetched_config(base.source, f"{base.kind.denoiser}/config.json")


def pipeline_config(base: ImageBase) -> Mapping[str, Any]:
    """The model's model_index.json; no weights are read."""
    source, kind, place = base.source, base.kind, "model_index.json"
    if source.kind == "hub" and not is_known(source):
        return fetched_config(source, place)
    if source.kind == "folder" or source.config is not None:
        return read_config((source.config or Path(source.location)) / place, base.name)
    return layout_of(kind).configs[place]


def known_configs(base: ImageBase) -> Configs | None:
    """Of denoiser, VAE and scheduler; `None` where they would have to be fetched."""
    source, kind = base.source, base.kind
    if source.kind == "hub":
        return kind.layout.configs if kind.layout is not None and is_known(source) else None
    if source.kind == "file" and source.config is None:
        return configs_for(layout_of(kind), base.shapes)
    folder, places = source.config or Path(source.location), ("vae/config.json", "scheduler/scheduler_config.json")
    configs = {place: read_config(folder / place, base.name) for place in places}
    return {f"{kind.denoiser}/config.json": network_config(base), **configs}


def check_scheduler(scheduler: Any, kind: Kind, name: str) -> str:
    """The prediction type, if it is one of the family's."""
    flow = NoiseSchedule.from_scheduler(scheduler).is_flow
    found = "flow" if flow else str(scheduler.config.get("prediction_type", "epsilon"))
    if found not in kind.predicts:
        raise InputError(f"model {name} predicts '{found}': use a model that predicts {' or '.join(kind.predicts)}")
    return found


def encoder_files(base: ImageBase) -> dict[str, Path]:
    """What a local model's text encoders are read from, by names that do not depend on the place.

    Raises `InputError` for weights that are not whole, since those of text encoders may not be read before training.
    """
    source, kind = base.source, base.kind
    if source.kind == "file":
        configs = source.config or layout_of(kind).folder
        own = {f"{part}/config.json": configs / part / "config.json" for part in kind.text_encoders}
        return {"checkpoint": Path(source.location), "layout": Path(single_file.__file__), **own}
    folder = Path(source.location)
    files = [path for part in kind.text_encoders for path in sorted((folder / part).glob("*"))]
    for path in files:
        if path.suffix == ".safetensors":
            tensor_shapes(path)
    return {
        f"{path.relative_to(folder).as_posix()} {base.variant or ''}".rstrip(): path
        for path in files
        if path.suffix in (".json", ".safetensors")
    }


def _missing(folder: Path, kind: Kind) -> dict[str, None]:
    """Optional text encoders that the model comes without, and their tokenizers."""
    gone = [part for part in kind.optional if not (folder / part).is_dir()]
    return dict.fromkeys([*gone, *(part.replace("text_encoder", "tokenizer") for part in gone)])


def _check_whole(pipe: Any, base: ImageBase, given: Mapping[str, Any]) -> None:
    for part in base.kind.parts:
        module = getattr(pipe, part)
        if module is None and (part in base.kind.optional or part in given):
            continue
        if module is None or any(tensor.is_meta for tensor in module.parameters()):
            raise InputError(f"model {base.name} lacks weights of its {part}: get the whole checkpoint")
    for part in base.kind.text_encoders:
        tokenizer = getattr(pipe, name := part.replace("text_encoder", "tokenizer"))
        if isinstance(tokenizer, CLIPTokenizer) and len(tokenizer) < SMALLEST_VOCABULARY:
            raise InputError(f"model {base.name} lacks its {name}'s files: get the whole model")
