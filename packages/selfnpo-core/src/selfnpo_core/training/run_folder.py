"""A run folder: what is in it, and whether a run may begin or go on there.

    config.yaml    the resolved recipe           run.json      the base and prompts it began with
    prompts.txt    the prompts                   metrics.jsonl one line an update
    checkpoints/   see `checkpoint`              samples/      pictures      npo/   the result, see `npo_folder`
    latents/       see `samples`

One process writes into it at a time, the one that holds its lock.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.system.files import read_json, tidy, write_json, write_text
from selfnpo_core.system.locks import FolderLock
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.resolving import changed_keys, resolve_recipe

_OF_A_BEGINNING = frozenset(
    {".lock", "prompts.txt", "run.json", ".prompts.txt.partial", ".run.json.partial", ".config.yaml.partial"}
)
"""What a run that was killed while it began may leave behind; config.yaml is written last."""


class RunFolder:
    """A locked run folder. `open` it; `close` (or leave its `with` block) to give the lock back."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.latents = path / "latents"
        self.logs = path / "logs"
        self.npo = path / "npo"
        self._lock = FolderLock(path / ".lock")

    @classmethod
    def open(
        cls, path: str | Path, recipe: Recipe, prompts: Sequence[str], facts: Mapping[str, Any], *, resume: bool
    ) -> "RunFolder":
        """Lock the folder, then begin a run in it or check that this is the run to be resumed.

        `facts` are what a resumed run must share besides the recipe: the base's hash, the family, ….
        """
        folder = cls(Path(path))
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"output {path} is a file: choose a folder") from None
        folder._lock.acquire()
        try:
            folder._enter(recipe, list(prompts), facts, resume)
        except BaseException:
            folder.close()
            raise
        return folder

    def _enter(self, recipe: Recipe, prompts: list[str], facts: Mapping[str, Any], resume: bool) -> None:
        known = {**facts, "prompts_sha256": prompts_sha256(prompts)}
        if resume:
            self._check_same_run(recipe, known)
        elif holds_run(self.path):
            raise InputError(
                f"output folder {self.path} holds another run: continue it with --resume, or choose another"
            )
        elif others := [p.name for p in self.path.iterdir() if p.name not in _OF_A_BEGINNING]:
            raise InputError(f"output folder {self.path} is not empty ({sorted(others)[0]}): choose a new folder")
        for place in (self.path, self.checkpoints):
            tidy(place)
        write_text(self.path / "prompts.txt", "\n".join(prompts) + "\n")
        write_json(self.path / "run.json", known)
        write_text(self.path / "config.yaml", recipe.to_yaml())

    def _check_same_run(self, recipe: Recipe, known: Mapping[str, Any]) -> None:
        if not holds_run(self.path):
            raise InputError(f"nothing to resume in {self.path}: leave --resume out to begin a run there")
        before = stored_recipe(self.path)
        facts = read_json(self.path / "run.json")
        names = {"base_hash": "the base model", "prompts_sha256": "the prompts"}
        changed = [f"{k} ({getattr(before, k)} → {getattr(recipe, k)})" for k in changed_keys(before, recipe)]
        changed += [names.get(k, k) for k, value in known.items() if facts.get(k) != value]
        if changed:
            raise InputError(
                f"cannot resume {self.path} with a changed recipe: {', '.join(changed)}; give the old values back "
                "or begin a new run in another folder"
            )

    def cut_metrics(self, step: int) -> None:
        """Forget the lines of updates after `step`, which will be made again, and any half-written line."""
        if self.metrics.exists():
            kept = [
                line
                for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
                if _step_of(line) <= step
            ]
            write_text(self.metrics, "".join(line + "\n" for line in kept))

    def add_metrics(self, values: Mapping[str, Any]) -> None:
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def prompts_sha256(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def holds_run(path: str | Path) -> bool:
    return (Path(path) / "config.yaml").is_file() and (Path(path) / "run.json").is_file()


def stored_recipe(path: str | Path) -> Recipe:
    """The recipe that a run folder was made with."""
    return resolve_recipe({}, Path(path) / "config.yaml")


def new_run_folder(root: str | Path, name: str) -> Path:
    """Make and return the first free root/name-N."""
    number = 1
    while True:
        path = Path(root) / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        return float("inf")
