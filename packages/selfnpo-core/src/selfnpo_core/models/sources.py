"""Where base models come from: a name that a family knows, a diffusers folder, a single file, or a hub id."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from selfnpo_core.errors import InputError
from selfnpo_core.models.marks import without_marks
from selfnpo_core.system.files import PICKLES
from selfnpo_core.system.paths import user_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PINNED = re.compile(r"(?P<plain>.+?)(@(?P<revision>[\w./-]+))?(:(?P<variant>[A-Za-z]\w*))?")


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A line of the table that `models` prints."""

    name: str
    family: str
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
    distilled: bool = False
    """Made to run without guidance, so that no negative branch runs."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from. `name` is what the user called it, `location` a folder, a file or a hub id."""

    name: str
    kind: Literal["folder", "file", "hub"]
    location: str
    config: Path | None = None
    """For a file: a diffusers folder whose configurations and tokenizer fit it."""
    revision: str | None = None
    """On the hub: a branch, a tag or a commit; `None` is its main branch."""
    variant: str | None = None
    """Of the weights, such as fp16, where there are several; `None` is the plain one, else the widest."""

    @property
    def plain(self) -> str:
        """The name without revision and variant."""
        return self.name if self.revision is self.variant is None else _pinned(self.name)[0]


def _pinned(name: str) -> tuple[str, str | None, str | None]:
    """NAME[@REVISION][:VARIANT] in its parts."""
    match = _PINNED.fullmatch(name)
    return (name, None, None) if match is None else (match["plain"], match["revision"], match["variant"])


def _plain(name: str | Path) -> str:
    return _pinned(str(name))[0]


def is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None


def find_source(
    name: str,
    known: Mapping[str, KnownModel],
    shipped: Callable[[], Path],
    config: str | Path | None = None,
    fetch: Callable[[Source], Path] | None = None,
) -> Source:
    """What `--model NAME` stands for; nothing is loaded.

    A name is, in this order: one of `known` (one without a hub id is in the folder `shipped`), an existing folder or
    file, or a hub id "owner/name". `@REVISION` and `:VARIANT` may follow it: see `Source`, also for config; of one on
    the hub, `fetch` gives its folder.
    """
    path = user_path(name)
    plain, revision, variant = _pinned(name)
    if plain != name and name not in known and not path.exists():
        return _with_pins(find_source(plain, known, shipped, config, fetch), name, revision, variant)
    if name in known:
        hub_id = known[name].hub_id
        source = Source(name=name, kind="hub" if hub_id else "folder", location=hub_id or str(shipped()))
    elif path.exists():
        source = _local(name, path)
    elif name.lower().endswith((".safetensors", *PICKLES)) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model {name} does not exist: give a diffusers folder or a .safetensors file")
    elif _HUB_ID.fullmatch(name):
        source = Source(name=name, kind="hub", location=name)
    else:
        hint = _hint(name, known)
        raise InputError(f"unknown model '{name}': {hint}, or give a folder, a file or a hub id owner/name")
    if config is None:
        return source
    _check_file(source)
    folder = user_path(config)
    if fetch is not None and not folder.exists() and (_plain(config) in known or is_hub_id(_plain(config))):
        found = find_source(str(config), known, shipped)
        folder = fetch(found) if found.kind == "hub" else Path(found.location)
    return _with_config(source, folder)


def _with_pins(source: Source, name: str, revision: str | None, variant: str | None) -> Source:
    if revision is not None and source.kind != "hub":
        raise InputError(f"model {source.name} is on this disk and has no revisions: leave @{revision} out")
    if variant is not None and source.kind == "file":
        raise InputError(f"model {source.name} is one file and has no variants: leave :{variant} out")
    return replace(source, name=name, revision=revision, variant=variant)


def _local(name: str, path: Path) -> Source:
    if path.is_dir():
        return Source(name=name, kind="folder", location=str(without_marks(path)))
    if path.suffix.lower() in PICKLES:
        raise InputError(f"{name} is a pickle, which can run code when loaded: convert it to .safetensors")
    if path.suffix.lower() == ".gguf":
        raise InputError(
            f"model {name} holds quantised weights (GGUF): give the model in 16 or 32 bits, as .safetensors"
        )
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"model {name} is neither a folder nor a .safetensors file: give one of these")
    return Source(name=name, kind="file", location=str(path))


def _check_file(source: Source) -> None:
    if source.kind != "file":
        raise InputError(f"--model-config is for a single .safetensors file, and {source.name} is none: leave it out")


def _with_config(source: Source, config: Path) -> Source:
    if not (config / "model_index.json").is_file():
        raise InputError(f"--model-config {config} is not a diffusers folder (no model_index.json): give one")
    return Source(name=source.name, kind="file", location=source.location, config=without_marks(config))


def _hint(name: str, known: Mapping[str, KnownModel]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
