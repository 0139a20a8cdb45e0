"""Configurations of a model on the hub, for a single file that has none (`--model-config`)."""

from pathlib import Path

from selfnpo_core.models.hub import CONFIGS, fetched_folder
from selfnpo_core.models.loading import one_line_errors, quiet
from selfnpo_core.models.sources import Source


def fetched_configs(source: Source) -> Path:
    """Folder with a repository's configurations and tokenizers, in the hub's own cache."""
    with quiet(), one_line_errors(source):
        return fetched_folder(source.location, CONFIGS, source.revision)
