"""The hub, and what of it is in its cache: with HF_HUB_OFFLINE=1, or without a network, that is all there is."""

from collections.abc import Sequence
from pathlib import Path

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.models.sources import is_hub_id

CONFIGS = ("*.json", "*/*.json", "*/*.txt", "*/*.model")
"""Of a diffusers repository: its configurations and tokenizers."""


def files_of(repo: str, revision: str | None = None) -> list[str]:
    """Names of a repository's files; where the hub cannot be asked, of those in the cache."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return list_repo_files(repo, revision=revision)
    except Exception as error:  # the hub's client has many; the cache is asked after any of them
        try:
            place = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except Exception:
            raise error from None
        return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def fetched_folder(repo: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Folder with these files of a repository, in the hub's own cache. revision: `None` is its main branch."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))


def check_push(repo: str) -> None:
    """Raise `InputError`, before there is anything to lose, where `push` could not even begin."""
    from huggingface_hub import constants, get_token

    if not is_hub_id(repo):
        raise InputError(f"--push-to-hub {repo} is no repository: give OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise InputError("--push-to-hub needs the hub, and HF_HUB_OFFLINE is set: unset it")
    if get_token() is None:
        raise InputError("--push-to-hub needs your token: log in with `hf auth login`, or set HF_TOKEN")


def push(files: Sequence[Path], repo: str, *, private: bool) -> str:
    """Bring files and what is in folders to a repository of the user's, made if it is not there; returns its address.

    Raises `RunError` if that fails; what is on this disk stays.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    places = [(path, path.name) for path in files if path.is_file()]
    for folder in (path for path in files if path.is_dir()):
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        places += [(path, path.relative_to(folder).as_posix()) for path in found]
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for path, name in places]
    try:
        api = HfApi()
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        api.create_commit(repo, added, commit_message="Negative weights of Self-NPO")
    except Exception as error:  # the hub's client has many
        check_token(error, repo)
        detail = " ".join(str(error).split())[:160]
        raise RunError(
            f"{repo} on the hub was not written ({type(error).__name__}: {detail}); {files[0]} is whole: "
            f"`hf upload {repo} {files[0]}` when that is mended"
        ) from error
    return address


def check_token(error: BaseException, repo: str) -> None:
    """Raise `InputError` if the hub has refused the user's token, which its client calls a missing repository."""
    from huggingface_hub import get_token

    refused: BaseException | None = error
    while refused is not None:
        status = getattr(getattr(refused, "response", None), "status_code", None)
        if status == 401 and get_token() is not None:
            raise InputError(
                f"the hub refuses your token (401, asked for {repo}): it is wrong or has expired; `hf auth login`, or "
                "unset HF_TOKEN"
            ) from None
        refused = refused.__cause__ or refused.__context__
