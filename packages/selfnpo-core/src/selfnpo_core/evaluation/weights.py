"""Where the weights of judges come from: a folder of the user's, or the hub.

--weights DIR holds a folder for each repository, DIR/OWNER/NAME/FILE, as `hf download OWNER/NAME --local-dir` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.models.hub import check_token
from selfnpo_core.system.disk import is_disk_full
from selfnpo_core.system.files import PICKLES, file_sha256, load_tensors

SAFETENSORS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Files that a network is made of.

    files: names, or several that do equally well with | between them, of which the hub has the first.
    """

    repo: str
    files: tuple[str, ...]
    hub: bool = True
    """Whether the hub has the repository; else only --weights does."""
    elsewhere: str = ""
    """For those that the hub does not have: where they come from."""

    @property
    def command(self) -> str:
        names = " ".join(name.split("|")[0] for name in self.files)
        return f"hf download {self.repo} {names} --local-dir WEIGHTS/{self.repo}"


def locate(wanted: Sequence[Wanted], folder: Path | None, metric: str) -> list[Path]:
    """A folder for each of `wanted`, with its files in it. Raises one `InputError` that names what is missing.

    folder: as of --weights. What it does not hold comes from the hub, or its cache.
    """
    found = [_locate(each, folder) for each in wanted]
    missing = [each for each, place in zip(wanted, found, strict=True) if place is None]
    if missing:
        ways = "; ".join(each.command if each.hub else f"put {each.elsewhere}" for each in missing)
        files = "; ".join(f"{', '.join(each.files).replace('|', ' or ')} of {each.repo}" for each in missing)
        raise InputError(f"{metric} wants {files}. With a network: {ways}. Then give --weights WEIGHTS")
    return [place for place in found if place is not None]


def _locate(wanted: Wanted, folder: Path | None) -> Path | None:
    if folder is not None:
        place = folder / wanted.repo
        if all(pick(place, name) for name in wanted.files):
            return place
    return _from_hub(wanted) if wanted.hub else None


def _from_hub(wanted: Wanted) -> Path | None:
    from huggingface_hub import snapshot_download

    patterns = [name for names in wanted.files for name in names.split("|")]
    for local in (True, False):  # the cache first, so that nothing is asked of the network for what is there
        try:
            place = Path(snapshot_download(wanted.repo, allow_patterns=patterns, local_files_only=local))
        except Exception as error:  # the hub's client has many; which files are wanted says more than any of them
            if is_disk_full(error):
                raise
            check_token(error, wanted.repo)
            continue
        if all(pick(place, name) for name in wanted.files):
            return place
    return None


def pick(place: Path, names: str) -> Path | None:
    """The file that is there, of several names with | between them; safetensors comes first."""
    ordered = sorted(names.split("|"), key=lambda name: not name.endswith(SAFETENSORS))
    return next((place / name for name in ordered if (place / name).is_file()), None)


def weights_sha256(wanted: Sequence[Wanted], places: Sequence[Path]) -> dict[str, str]:
    """Hashes of the weights files, by their names."""
    files = [
        (each.repo, file)
        for each, place in zip(wanted, places, strict=True)
        for names in each.files
        if (file := pick(place, names)) and file.suffix in (SAFETENSORS, *PICKLES)
    ]
    return {f"{repo}/{file.name}": file_sha256(file) for repo, file in files}


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of one that torch's restricted reader takes: it makes tensors and plain
    containers only, and runs no code. Only files of judges that were published as pickles come here.
    """
    if file.suffix == SAFETENSORS:
        return load_tensors(file)
    try:
        stored: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds
        detail = " ".join(str(error).split())[:120]
        raise InputError(f"{file} cannot be read as plain tensors ({detail}): convert it to .safetensors") from None
    while isinstance(stored, dict) and isinstance(stored.get("state_dict"), dict):
        stored = stored["state_dict"]
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"{file} holds something else than tensors by name: get it again")
    return stored


def library(name: str) -> str:
    """A library and its version, such as "transformers 5.23.0"."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} (not installed)"
