"""Which files of a component's folder hold its weights: there may be variants, and shards.

diffusion_pytorch_model.safetensors             model.fp16.safetensors
model-00001-of-00002.safetensors                model.bf16-00001-of-00002.safetensors
                                                model-00001-of-00002.fp16.safetensors, as of old
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from selfnpo_core.errors import InputError
from selfnpo_core.models import quantised
from selfnpo_core.models.headers import Header, read_header
from selfnpo_core.system import private
from selfnpo_core.system.files import PICKLES

log = logging.getLogger(__name__)
_NAME = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(\.(?P<variant>[A-Za-z]\w*))?"
    r"(-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?(\.(?P<old>[A-Za-z]\w*))?\.safetensors"
)
_PREFERRED = (None, "fp32", "fp16", "bf16")
"""No variant at all before the widest one."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The files of one component, by name, and the variant that they are."""

    variant: str | None
    files: tuple[str, ...]


def choose(names: Iterable[str], wanted: str | None = None) -> Weights | None:
    """Of the names in a component's folder; `None` where no weights are among them.

    wanted: a variant to be taken if it is there.
    """
    found: dict[str | None, list[str]] = {}
    for name in sorted(names):
        if match := _NAME.fullmatch(name):
            found.setdefault(match["variant"] or match["old"], []).append(name)
    if not found:
        return None
    variant = (
        wanted
        if wanted in found
        else min(found, key=lambda v: (_PREFERRED.index(v) if v in _PREFERRED else len(_PREFERRED), str(v)))
    )
    return Weights(variant=variant, files=tuple(found[variant]))


def find_weights(folder: Path, part: str, name: str, variant: str | None = None) -> Weights:
    """Of a component of a diffusers folder, whose headers are read. variant: one that is wanted.

    Raises `InputError` for weights that are not there, not whole, pickled or quantised. name: of the model.
    """
    place = folder / part
    weights = choose((path.name for path in place.glob("*.safetensors")), variant)
    if weights is None:
        suffixes = {path.suffix.lower() for path in place.glob("*")}
        problem = "no weights"
        if suffixes & set(PICKLES):
            problem = "only pickled weights, which can run code when loaded"
        elif ".gguf" in suffixes:
            problem = "only quantised weights (GGUF)"
        raise InputError(f"model {name} has {problem} in {part}: get it as safetensors")
    if variant not in (None, weights.variant):
        log.warning(
            "model %s has no variant %s in %s: %s is taken", name, variant, part, weights.variant or "the plain one"
        )
    _check_shards(weights, part, name)
    if any("-of-" in file for file in weights.files) and not any(place.glob("*.index*.json")):
        raise InputError(
            f"model {name} lacks the index of the weights in {part} (….safetensors.index.json): get it too"
        )
    for file in weights.files:
        quantised.check_header(_header(place / file, name), place / file)
    return weights


def header_of(folder: Path, weights: Weights) -> Header:
    """Of all of a component's files together. folder: the component's."""
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for file in weights.files:
        header = read_header(folder / file)
        shapes.update(header.shapes)
        dtypes.update(header.dtypes)
        metadata.update(header.metadata)
    return Header(shapes=shapes, dtypes=dtypes, metadata=metadata)


def wanted_files(names: Iterable[str], parts: Sequence[str], variant: str | None = None) -> list[str]:
    """Of a repository's files those that a diffusers folder needs: of the parts with weights one variant each.

    variant: one that is wanted.
    """
    kept: list[str] = []
    folders: dict[str, list[str]] = {part: [] for part in parts}
    for name in names:
        part, _, rest = name.partition("/")
        if name == "model_index.json" or (rest and name.endswith((".json", ".txt", ".model"))):
            kept.append(name)
        elif part in folders and rest.endswith(".safetensors"):
            folders[part].append(rest)
    for part, found in folders.items():
        if (weights := choose(found, variant)) is not None:
            kept += [f"{part}/{file}" for file in weights.files]
    return kept


def load_variants(
    folder: Path, index: Mapping[str, Any], variants: Mapping[str, str], dtype: torch.dtype
) -> dict[str, Any]:
    """Components that exist as a variant only, loaded one by one: a pipeline's loader knows one variant for all.

    index: the folder's model_index.json. variants: component → variant.
    """
    return {part: load_component(folder, index, part, variant, dtype) for part, variant in variants.items()}


def load_component(
    folder: Path, index: Mapping[str, Any], part: str, variant: str | None, dtype: torch.dtype | None
) -> Any:
    """One component with its weights, by the class that the folder's model_index.json names."""
    kind, is_transformers = component_class(folder, index, part)
    given = {"dtype" if is_transformers else "torch_dtype": dtype}
    return kind.from_pretrained(folder / part, variant=variant, use_safetensors=True, **given)


def sketched_component(kind: Any, config: Mapping[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    """One on the meta device, as `load_component` would read it in this dtype: its bytes, not its numbers."""
    of_transformers = issubclass(kind, transformers.PreTrainedModel)
    with torch.device("meta"):
        made: torch.nn.Module = kind(kind.config_class(**config)) if of_transformers else kind.from_config(dict(config))
    torch.nn.Module.to(made.eval(), dtype)  # diffusers' own warns of what is kept below
    kept = private.float32_parts(kind) if of_transformers and dtype == torch.float16 else ()
    for name, module in made.named_modules():
        if name.rpartition(".")[2] in kept:
            module.float()
    return made


def size_of(module: torch.nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def component_class(folder: Path, index: Mapping[str, Any], part: str) -> tuple[Any, bool]:
    """And whether it is transformers'. Raises `InputError` for another library's, and for none."""
    named = index[part]
    library, name = named if isinstance(named, list) and len(named) == 2 else (None, None)
    if not isinstance(name, str):
        raise InputError(f"{folder}/model_index.json names no library and class for its {part}: get it again")
    found = getattr({"diffusers": diffusers, "transformers": transformers}.get(str(library)), name, None)
    if found is None:
        raise InputError(
            f"{folder}/model_index.json has a {part} of {library}, {name}: give one of diffusers' own classes"
        )
    return found, library == "transformers"


def _header(file: Path, name: str) -> Header:
    try:
        return read_header(file)
    except InputError as error:
        raise InputError(f"model {name} cannot be loaded: {error}") from None


def _check_shards(weights: Weights, part: str, name: str) -> None:
    found = [match for file in weights.files if (match := _NAME.fullmatch(file)) and match["shards"]]
    for count in {int(match["shards"]) for match in found}:
        there = {int(match["shard"]) for match in found if int(match["shards"]) == count}
        if len(found) == len(weights.files) and (gone := sorted(set(range(1, count + 1)) - there)):
            raise InputError(f"model {name} lacks part {gone[0]} of {count} of the weights in {part}: get the rest")
