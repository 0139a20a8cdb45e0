"""Tiny CogVideoX models on disk: 2b, 5b and 1.5 in what tells them apart."""

import shutil
from pathlib import Path

import pytest
from tests.tiny import COGVIDEOX_KINDS, cogvideox


@pytest.fixture(scope="session", params=COGVIDEOX_KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a random model, of each kind in turn."""
    path = tmp_path_factory.mktemp("models") / f"tiny-{request.param}"
    cogvideox(request.param).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2b kind."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    cogvideox().save_pretrained(path)
    return path


@pytest.fixture
def damaged(small: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(small, tmp_path / "model"))
