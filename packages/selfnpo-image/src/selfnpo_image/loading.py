"""From a base model to a stock pipeline on the CPU.

Weights are safetensors only, no remote code is run, and no safety checker is loaded.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
from transformers import CLIPTokenizer

from selfnpo_core.errors import InputError
from selfnpo_core.models.cached import check_cached
from selfnpo_core.models.components import (
    component_class,
    header_of,
    load_component,
    sketched_component,
    wanted_files,
)
from selfnpo_core.models.headers import encoding_dtype, read_header, widest_dtype
from selfnpo_core.models.loading import one_line_errors, quiet
from selfnpo_core.models.sources import Source
from selfnpo_core.models.stated import check_agree, settled, stated_in
from selfnpo_core.models.vocabularies import check_tokenizer, limit_length
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_image import single_file
from selfnpo_image.base import ImageBase, check_network, of_folder, read_config
from selfnpo_image.kinds import CONFIGS, Configs, Kind, configs_in
from selfnpo_image.models import is_known
from selfnpo_image.single_file import configs_for, layout_of, prepared, usual_ending


def load_pipeline(base: ImageBase, *, dtype: torch.dtype | None = torch.float32, **components: Any) -> Any:
    """The stock pipeline of a model, on the CPU. Components that are given (`unet=…`) are not read from disk.

    dtype: `None` for what denoiser and VAE were stored in; of a single file, what holds the numbers of both.
    Raises `InputError` for weights that are not there or not whole.
    """
    base = local(base)
    source, kind = base.source, base.kind
    made: Any = kind.pipeline
    with quiet(), one_line_errors(source):
        if source.kind == "file":
            own = dtype or widest_dtype(_own_dtypes(base, wanted=True))
            with usual_ending(Path(source.location)) as file, prepared(base) as settings:
                given = {**kind.left_out, **settings, **components}
                pipe = made.from_single_file(str(file), torch_dtype=own, **given)
        else:
            folder = Path(source.location)
            variants = {part: variant for part, variant in base.variants.items() if part not in components}
            dtypes = _stored_dtypes(base) if dtype is None else dict.fromkeys(kind.parts, dtype)
            index = read_config(folder / "model_index.json", base.name)
            found = {part: load_component(folder, index, part, own, dtypes[part]) for part, own in variants.items()}
            given = {**kind.left_out, **_missing(folder, kind), **found, **components}
            pipe = made.from_pretrained(source.location, torch_dtype=dtype or dtypes, use_safetensors=True, **given)
        pipe.register_modules(scheduler=settled(pipe.scheduler, base.name, stated_in(base.header, base.name)))
        check_scheduler(pipe.scheduler, kind, source.name)
        _check_whole(pipe, base, components)
        _check_tokenizers(pipe, base, components)
    pipe.register_to_config(_name_or_path=source.name)
    return pipe


def local(base: ImageBase) -> ImageBase:
    """The same model on this disk: what is on the hub is fetched, into the hub's own cache, and checked."""
    source, kind = base.source, base.kind
    if source.kind != "hub":
        return base
    check_network(kind, fetched_config(source, f"{kind.denoiser}/config.json"), base.name)
    with quiet(), one_line_errors(source):
        folder = _fetched(source, kind)
        optional = [*kind.optional, *(part.replace("text_encoder", "tokenizer") for part in kind.optional)]
        check_cached(source.location, folder, optional, source.revision)
        here = of_folder(replace(source, kind="folder", location=str(folder)), kind, base.known)
        make_scheduler(here, say=True)
    return here


def _fetched(source: Source, kind: Kind) -> Path:
    """A repository's folder; of components that have their weights as variants only, one of these."""
    try:
        pinned = {"revision": source.revision, "variant": source.variant}
        return Path(kind.pipeline.download(source.location, use_safetensors=True, **pinned, **kind.left_out))
    except OSError as problem:  # so diffusers says that a component has no weights without a variant
        try:
            names = list_repo_files(source.location, revision=source.revision)
            wanted = wanted_files(names, kind.parts, source.variant)
        except Exception:
            raise problem from None
    return Path(snapshot_download(source.location, revision=source.revision, allow_patterns=wanted))


def fetched_config(source: Source, place: str) -> dict[str, Any]:
    """One configuration of a model on the hub."""
    with quiet(), one_line_errors(source):
        return read_config(Path(hf_hub_download(source.location, place, revision=source.revision)), source.name)


def network_config(base: ImageBase) -> Mapping[str, Any]:
    """The denoiser's configuration; no weights are read."""
    if base.network is not None:
        return base.network
    return fetched_config(base.source, f"{base.kind.denoiser}/config.json")


def pipeline_config(base: ImageBase) -> Mapping[str, Any]:
    """The model's model_index.json; no weights are read."""
    source, place = base.source, "model_index.json"
    if source.kind == "hub" and not (is_known(source) and has_packaged(base)):
        return fetched_config(source, place)
    if source.kind == "folder" or source.config is not None:
        return read_config((source.config or Path(source.location)) / place, base.name)
    return packaged(base)[place]


def has_packaged(base: ImageBase) -> bool:
    return base.kind.layout is not None or _own_configs(base) is not None


def packaged(base: ImageBase) -> Configs:
    """Configurations that came with the package: a known model's own, else those of its family's first release."""
    own = _own_configs(base)
    return layout_of(base.kind).configs if own is None else own


def _own_configs(base: ImageBase) -> Configs | None:
    folder = None if base.known is None else CONFIGS / base.known.name
    return configs_in(folder) if folder is not None and folder.is_dir() else None


def known_configs(base: ImageBase) -> Configs | None:
    """Of denoiser, VAE and scheduler; `None` where they would have to be fetched."""
    source, kind = base.source, base.kind
    if source.kind == "hub":
        return packaged(base) if is_known(source) and has_packaged(base) else None
    if source.kind == "file" and source.config is None:
        return configs_for(layout_of(kind), base.shapes)
    folder, places = source.config or Path(source.location), ("vae/config.json", "scheduler/scheduler_config.json")
    configs = {place: read_config(folder / place, base.name) for place in places}
    return {f"{kind.denoiser}/config.json": network_config(base), **configs}


def make_scheduler(base: ImageBase, *, say: bool = False) -> Any:
    """A local model's scheduler, by its configuration and by what the weights say of themselves.

    Of a single file its own word holds, a folder may not contradict itself. say: warn of what the folder has otherwise.
    """
    source, kind, place = base.source, base.kind, "scheduler/scheduler_config.json"
    stated = stated_in(base.header, base.name)
    if source.kind == "file" and source.config is None:
        configs: Configs = layout_of(kind).configs
        index, config = configs["model_index.json"], configs[place]
    else:
        folder = source.config or Path(source.location)
        index, config = (read_config(folder / name, base.name) for name in ("model_index.json", place))
    match index.get("scheduler"):
        case [_, str(name)]:
            found = name
        case _:
            found = str(config.get("_class_name"))
    made = getattr(diffusers, found, None)
    if not (isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)):
        raise InputError(f"model {base.name} has the scheduler {found}, which diffusers does not have: give another")
    scheduler: Any = made.from_config(dict(config))  # type: ignore[attr-defined]
    if source.kind == "folder":
        check_agree(stated, scheduler.config, f"{base.name}/{kind.denoiser}", f"{base.name}/{place}")
    scheduler = settled(scheduler, base.name, stated, say=say)
    check_scheduler(scheduler, kind, base.name)
    return scheduler


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
    files: list[Path] = []
    for part in kind.text_encoders:
        if part in base.weights:
            weights = [folder / part / name for name in base.weights[part].files]
            for path in weights:
                read_header(path)
            files += [*sorted((folder / part).glob("*.json")), *weights]
    return {path.relative_to(folder).as_posix(): path for path in files}


def encoder_dtypes(base: ImageBase, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Of a local model's text encoders: the 16 bits that each was stored in, if it was, else `dtype`."""
    source, kind = base.source, base.kind
    if source.kind == "file":
        return dict.fromkeys(kind.text_encoders, encoding_dtype(_own_dtypes(base, wanted=False), dtype))
    found = {part: base.weights[part] for part in kind.text_encoders if part in base.weights}
    folder = Path(source.location)
    return {part: encoding_dtype(header_of(folder / part, some).dtypes, dtype) for part, some in found.items()}


def _own_dtypes(base: ImageBase, *, wanted: bool) -> dict[str, str]:
    """Of a single file's tensors, by name: of its denoiser and VAE if they are wanted, else of all others."""
    own = ("model.diffusion_model.", "first_stage_model.")
    return {name: found for name, found in base.header.dtypes.items() if name.startswith(own) is wanted}


def _stored_dtypes(base: ImageBase) -> dict[str, torch.dtype]:
    """Of a local folder's components with weights: a type that holds the numbers of each."""
    folder = Path(base.source.location)
    return {part: widest_dtype(header_of(folder / part, own).dtypes) for part, own in base.weights.items()}


def load_encoders(base: ImageBase, dtypes: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """The text encoders of a local folder, each in its own dtype. A single file's come with the pipeline."""
    source = base.source
    if source.kind == "file":
        return {}
    folder, variants = Path(source.location), base.variants
    with quiet(), one_line_errors(source):
        index = read_config(folder / "model_index.json", base.name)
        return {part: load_component(folder, index, part, variants.get(part), own) for part, own in dtypes.items()}


def sketched(base: ImageBase, part: str, dtype: torch.dtype) -> torch.nn.Module | None:
    """A component on the meta device, by configurations alone; `None` for one that the model comes without."""
    source, kind = base.source, base.kind
    if source.kind == "hub" or (source.kind == "file" and source.config is None):
        configs = packaged(base)
        index, config = configs["model_index.json"], configs[f"{part}/config.json"]
    else:
        folder = source.config or Path(source.location)
        if part in kind.optional and not (folder / part).is_dir():
            return None
        index, config = (read_config(folder / name, base.name) for name in ("model_index.json", f"{part}/config.json"))
    made, _ = component_class(Path(source.location), index, part)
    with one_line_errors(source):
        return sketched_component(made, config, dtype)


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


def _check_tokenizers(pipe: Any, base: ImageBase, given: Mapping[str, Any]) -> None:
    """Each beside its text encoder's configuration; one that has no limit of tokens gets its encoder's."""
    kind, source = base.kind, base.source
    for part in kind.text_encoders:
        name = part.replace("text_encoder", "tokenizer")
        tokenizer, encoder = getattr(pipe, name), _encoder_config(base, part)
        if name in given or encoder is None:
            continue
        if tokenizer is None:
            raise InputError(f"model {base.name} has a {part} without a {name}: get the whole model")
        check_tokenizer(tokenizer, encoder, name, base.name if source.config is None else str(source.config))
        limit_length(tokenizer, encoder if isinstance(tokenizer, CLIPTokenizer) else None)
    if hasattr(pipe, "tokenizer_max_length"):  # SD3's reads it before
        pipe.tokenizer_max_length = pipe.tokenizer.model_max_length


def clip_tokens(base: ImageBase) -> int:
    """How many tokens of a prompt the first text encoder, a CLIP, reads, by configurations alone."""
    part, source, said = base.kind.text_encoders[0], base.source, None
    if source.kind == "hub":
        encoder: Mapping[str, Any] | None = packaged(base)[f"{part}/config.json"]
    else:
        encoder = _encoder_config(base, part)
    if source.kind == "folder" or source.config is not None:
        folder = source.config or Path(source.location)
        file = folder / part.replace("text_encoder", "tokenizer") / "tokenizer_config.json"
        said = read_config(file, base.name).get("model_max_length") if file.is_file() else None
    tokenizer = SimpleNamespace(model_max_length=said)
    limit_length(tokenizer, encoder)
    return int(tokenizer.model_max_length)


def _encoder_config(base: ImageBase, part: str) -> Mapping[str, Any] | None:
    """Of a text encoder; `None` for one that the model comes without."""
    source = base.source
    if source.kind == "file" and source.config is None:
        return layout_of(base.kind).configs[f"{part}/config.json"]
    folder = source.config or Path(source.location)
    if part in base.kind.optional and not (folder / part).is_dir():
        return None
    return read_config(folder / part / "config.json", base.name)
