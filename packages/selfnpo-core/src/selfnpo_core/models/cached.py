"""What of a model is in the hub's cache, when there is nothing else: which snapshot is meant, and what it lacks."""

import string
from collections.abc import Collection, Sequence
from pathlib import Path

from selfnpo_core.errors import InputError
from selfnpo_core.models.components import choose
from selfnpo_core.system.files import PICKLES, read_json

_NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that no command loads."""
_TOKENIZERS = ("tokenizer.json", "spiece.model", "vocab.json")
"""Files that each hold a vocabulary."""
_INDEX = ".safetensors.index.json"
_COMMIT = 40
"""Hexadecimal digits of one."""


def is_offline(error: BaseException | None = None) -> bool:
    """Whether the hub may not be asked, or could not be when this error came of it."""
    from huggingface_hub import constants, errors

    while error is not None:
        if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return bool(constants.HF_HUB_OFFLINE)


def incomplete(repo: str, missing: Collection[str], revision: str | None = None) -> InputError:
    """Of a model that is there in part."""
    return InputError(
        f"not all of model {_pinned(repo, revision)} is in the hub's cache, which lacks {', '.join(missing)}: with a "
        f"network, `{_download(repo, revision)}` gets the rest"
    )


def check_cached(repo: str, folder: Path, optional: Collection[str] = (), revision: str | None = None) -> None:
    """Raise `InputError` if the hub may not be asked, and the cache's folder of a diffusers model lacks some of it.

    optional: components that may be missing as a whole. revision: that was asked for, if not the main branch.
    """
    if is_offline() and (missing := missing_files(folder, optional)):
        raise incomplete(repo, missing, revision)


def explain(repo: str, error: BaseException, revision: str | None = None) -> InputError | None:
    """Why the cache cannot give a model that the hub was not asked for; `None` where nothing of it is there."""
    if not is_offline(error):
        return None
    place = _place(repo)
    snapshots = sorted(path.name for path in (place / "snapshots").glob("*") if path.is_dir())
    if not snapshots:
        return None
    if (meant := _snapshot(place, revision or "main")) is None:
        return _unknown(repo, place, snapshots, revision)
    if meant not in snapshots:
        return incomplete(repo, ["all of that snapshot" if revision else "all of its newest snapshot"], revision)
    missing = missing_files(place / "snapshots" / meant)
    return incomplete(repo, missing, revision) if missing else None


def _snapshot(place: Path, revision: str) -> str | None:
    """The commit that a revision is, as the cache knows it."""
    if len(revision) == _COMMIT and not set(revision) - set(string.hexdigits):
        return revision
    try:
        return (place / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        return None


def _unknown(repo: str, place: Path, snapshots: Sequence[str], revision: str | None) -> InputError:
    """Of a model of which the cache has snapshots, and does not know which one is meant."""
    folder, get = place / "snapshots", _download(repo, revision)
    if revision is not None:
        known = sorted(str(path.relative_to(place / "refs")) for path in (place / "refs").rglob("*") if path.is_file())
        there = ", ".join([*known, *snapshots])
        return InputError(
            f"revision {revision} of model {repo} is not in the hub's cache, which has {there}: give one of these, or "
            f"with a network `{get}`"
        )
    which = folder / snapshots[0] if len(snapshots) == 1 else f"one of the folders in {folder}"
    return InputError(
        f"model {repo} is in the hub's cache, but refs/main, which says which snapshot is meant, is not: give "
        f"{which} in its place, or with a network `{get}`"
    )


def _pinned(repo: str, revision: str | None) -> str:
    return repo if revision is None else f"{repo}@{revision}"


def _download(repo: str, revision: str | None) -> str:
    return f"hf download {repo}" + ("" if revision is None else f" --revision {revision}")


def missing_files(folder: Path, optional: Collection[str] = ()) -> list[str]:
    """What a diffusers folder lacks of the components that its model_index.json names."""
    try:
        index = read_json(folder / "model_index.json")
    except (OSError, ValueError):
        return ["model_index.json"]
    missing = []
    for part, made in index.items() if isinstance(index, dict) else ():
        match made:
            case [str(), str(kind)] if part not in _NOT_NEEDED:
                names = {path.name for path in (folder / part).glob("*") if path.is_file()}
                if names or part not in optional:
                    missing += [f"{part}/{name}" for name in _lacking(folder / part, kind, names)]
    return missing


def _lacking(folder: Path, kind: str, names: Collection[str]) -> list[str]:
    """What a component's folder lacks. names: of the files that are there, and not only linked to."""
    if "Scheduler" in kind:
        return [name for name in ("scheduler_config.json",) if name not in names]
    if "Processor" in kind:
        return []
    if "Tokenizer" in kind:
        return [] if any(name in names for name in _TOKENIZERS) else [" or ".join(_TOKENIZERS)]
    lacking = [name for name in ("config.json",) if name not in names]
    weights = choose(names)
    if weights is not None and weights.variant is not None:
        return lacking
    shards = sorted({shard for name in names if name.endswith(_INDEX) for shard in _shards(folder / name)})
    lacking += [shard for shard in shards if shard not in names]
    if weights is None and not shards and not any(name.endswith(PICKLES) for name in names):
        lacking.append("*.safetensors")
    return lacking


def _shards(file: Path) -> list[str]:
    """Of an index; none of one that cannot be read, which is refused where it is."""
    try:
        return [str(shard) for shard in read_json(file)["weight_map"].values()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _place(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model")
