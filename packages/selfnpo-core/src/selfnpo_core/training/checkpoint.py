"""Checkpoints: `checkpoints/step-NNNNNN/`, whole or not there, and never a pickle.

    <part>.safetensors   tensors of one part of the state: student, teacher, optimizer, source
    state.json           everything that is no tensor
    manifest.json        size and sha256 of the files above; written last

A folder is filled aside, brought to the disk and then renamed. On resume the newest one whose files match its
manifest is taken, so a run killed at any moment, or a file cut short afterwards, costs at most one interval.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from selfnpo_core.errors import RunError
from selfnpo_core.system.files import file_sha256, load_tensors, read_json, save_hashed, write_json, written_aside

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class State:
    """What a checkpoint holds: `tensors[part][name]` and `values`, which json can hold."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]


def save_checkpoint(root: Path, state: State, keep_last: int = 0) -> Path:
    """Write root/step-NNNNNN, then remove all but the newest `keep_last` (0: keep all)."""
    target = root / f"step-{state.step:06d}"
    with written_aside(target) as aside:
        hashes = {
            f"{part}.safetensors": save_hashed(aside / f"{part}.safetensors", tensors)
            for part, tensors in state.tensors.items()
        }
        write_json(aside / "state.json", {"schema": 1, "step": state.step, **state.values})
        hashes["state.json"] = file_sha256(aside / "state.json")
        files = {name: {"size": (aside / name).stat().st_size, "sha256": hashes[name]} for name in sorted(hashes)}
        write_json(aside / MANIFEST, {"schema": 1, "step": state.step, "files": files})
    for old in _folders(root)[:-keep_last] if keep_last else []:
        shutil.rmtree(old)
    return target


def newest_checkpoint(root: Path) -> Path | None:
    """The newest whole checkpoint; newer ones that are not whole are named in a warning and passed over."""
    for folder in reversed(_folders(root)):
        damage = damage_of(folder)
        if damage is None:
            return folder
        log.warning("%s is not whole (%s): an older checkpoint is used", folder, damage)
    return None


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, `None` if nothing: every file is compared with the manifest."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        for name, facts in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != facts["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {facts['size']}"
            if file_sha256(path) != facts["sha256"]:
                return f"{name} has another sha256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {type(error).__name__}"
    return None


def load_checkpoint(folder: Path) -> State:
    damage = damage_of(folder)
    if damage is not None:
        raise RunError(f"checkpoint {folder} is not whole ({damage}): resume from an older one")
    values = read_json(folder / "state.json")
    parts = sorted(folder.glob("*.safetensors"))
    return State(step=values["step"], tensors={path.stem: load_tensors(path) for path in parts}, values=values)


def _folders(root: Path) -> list[Path]:
    """Checkpoints by step, oldest first."""
    found = [p for p in root.glob("step-*") if p.is_dir() and re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
