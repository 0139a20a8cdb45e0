"""The hub, and what of it is in its cache: with HF_HUB_OFFLINE=1, or without a network, that is all there is."""

from collections.abc import Sequence
from pathlib import Path

from selfnpo_core.errors import InputError

CONFIGS = ("*.json", "*/*.json", "*/*.txt", "*/*.model")
"""Of a diffusers repository: its configurations and tokenizers."""


def files_of(repo: str) -> list[str]:
    """Names of a repository's files; where the hub cannot be asked, of those in the cache."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return list_repo_files(repo)
    except Exception as error:  # the hub's client has many; the cache is asked after any of them
        try:
            place = Path(snapshot_download(repo, local_files_only=True))
        except Exception:
            raise error from None
        return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def fetched_folder(repo: str, patterns: Sequence[str]) -> Path:
    """Folder with these files of a repository, in the hub's own cache."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, allow_patterns=list(patterns)))


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
