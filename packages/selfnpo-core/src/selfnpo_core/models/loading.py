"""What every family's loading code shares: less noise, and the libraries' errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch
import transformers

from selfnpo_core.errors import InputError
from selfnpo_core.models.cached import explain
from selfnpo_core.models.hub import check_token
from selfnpo_core.models.sources import Source
from selfnpo_core.system.disk import is_disk_full


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars over components; downloads keep theirs."""
    bars = diffusers.utils.logging, transformers.utils.logging
    shown = [bar.is_progress_bar_enabled() for bar in bars]
    for bar in bars:
        bar.disable_progress_bar()
    try:
        yield
    finally:
        for bar, was in zip(bars, shown, strict=True):
            if was:
                bar.enable_progress_bar()


@contextmanager
def one_line_errors(source: Source) -> Iterator[None]:
    """What the libraries raise over a model they cannot load, as an `InputError` that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError:
        raise InputError(
            f"model {source.name} is gated: accept its licence on the hub and log in with `hf auth login`"
        ) from None
    except errors.RemoteEntryNotFoundError:
        raise InputError(
            f"model {source.location} on the hub is no diffusers folder, or not a whole one: give one that is (a LoRA "
            "goes to --npo or --preference)"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(
            f"the hub's {source.location} has no revision {source.revision}: give a branch, a tag or a commit"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        check_token(error, source.location)
        raise InputError(f"the hub has no model {source.location}: check the name, or give a folder") from None
    except Exception as error:
        check_token(error, source.location)
        if is_disk_full(error) or isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        detail = " ".join(str(error).split())[:160]
        if isinstance(error, LookupError | TypeError | AttributeError):  # which do not say what they are
            detail = f"{type(error).__name__}: {detail}"
        if source.kind == "hub":
            if (told := explain(source.location, error, source.revision)) is not None:
                raise told from error
            raise InputError(
                f"cannot get model {source.location} from the hub ({type(error).__name__}): with a network, "
                f"`hf download {source.location} --local-dir DIR`, then --model DIR"
            ) from error
        raise InputError(f"model {source.name} cannot be loaded ({detail}): get it again") from error
