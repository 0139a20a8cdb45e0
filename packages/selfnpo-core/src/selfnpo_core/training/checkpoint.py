"""Checkpoints: `checkpoints/step-NNNNNN/`, whole or not there, and never a pickle.

    <part>.safetensors                  tensors of one part of the state: student, teacher, optimizer, source
    <part>-00001-of-00008.safetensors   or some of them, whole, as one of eight processes wrote them
    state.json                          everything that is no tensor
    manifest.json                       size and sha256 of the files above; written last

A folder is filled aside, brought to the disk and then renamed. On resume the newest one whose files match its
manifest is taken, so a run killed at any moment, or a file cut short afterwards, costs at most one interval. Any number
of processes reads what any number has written.
"""

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from selfnpo_core.ranks import ALONE, Ranks
from selfnpo_core.system.files import file_sha256, load_tensors, read_json, write_json, written_aside
from selfnpo_core.system.processes import gathered, on_main
from selfnpo_core.training.streaming import Written, write_parts

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class State:
    """What a checkpoint holds: `tensors[part][name]` and `values`, which json can hold."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]


def save_checkpoint(
    root: Path, state: State, keep_last: int = 0, ranks: Ranks = ALONE, *, shared: bool = False
) -> Path:
    """Write root/step-NNNNNN, then remove all but the newest `keep_last` (0: keep all). By all processes together.

    shared: each of them writes a share of what they walk through, see `write_parts`.
    """
    target = root / f"step-{state.step:06d}"
    with ExitStack() as stack:
        aside = on_main(lambda: stack.enter_context(written_aside(target)))
        parts = write_parts(aside, state.tensors, ranks, shared=shared)

        def finish() -> None:
            write_json(file := aside / "state.json", {"schema": 1, "step": state.step, **state.values})
            written = {**parts, file.name: Written(file.stat().st_size, file_sha256(file))}
            files = {name: asdict(written[name]) for name in sorted(written)}
            write_json(aside / MANIFEST, {"schema": 1, "step": state.step, "files": files})
            stack.close()
            for old in _folders(root)[:-keep_last] if keep_last else []:
                shutil.rmtree(old)

        on_main(finish)
    return target


def newest_checkpoint(root: Path) -> Path | None:
    """The newest whole checkpoint; newer ones that are not whole are named in a warning and passed over."""
    return _newest_whole(_folders(root), damage_of, log.warning)


def agreed_checkpoint(root: Path, ranks: Ranks) -> Path | None:
    """The same, by all processes together: each reads a share of the files."""

    def damage(folder: Path) -> str | None:
        return next(filter(None, gathered(lambda: damage_of(folder, ranks))), None)

    warn = log.debug if ranks.index else log.warning
    return _newest_whole(on_main(lambda: _folders(root)), damage, warn)


def _newest_whole(
    folders: Sequence[Path], damage_in: Callable[[Path], str | None], warn: Callable[..., None]
) -> Path | None:
    for folder in reversed(folders):
        damage = damage_in(folder)
        if damage is None:
            return folder
        warn("%s is not whole (%s): an older checkpoint is used", folder, damage)
    return None


def damage_of(folder: Path, ranks: Ranks = ALONE) -> str | None:
    """What is wrong with a checkpoint, `None` if nothing: files are compared with the manifest, one's share of them."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        if not files:
            return f"{MANIFEST} names no files"
        for name, facts in list(files.items())[ranks.index :: ranks.count]:
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
    """Of a whole one. Tensors lie in the files until they are used, so that many processes may load all of them."""
    values, tensors = read_json(folder / "state.json"), dict[str, dict[str, Tensor]]()
    for name in read_json(folder / MANIFEST)["files"]:
        if name.endswith(".safetensors"):
            part = re.sub(r"-\d{5}-of-\d{5}$", "", name.removesuffix(".safetensors"))
            tensors.setdefault(part, {}).update(load_tensors(folder / name))
    return State(step=values["step"], tensors=tensors, values=values)


def _folders(root: Path) -> list[Path]:
    """Checkpoints by step, oldest first."""
    found = [p for p in root.glob("step-*") if p.is_dir() and re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
