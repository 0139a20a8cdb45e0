"""Tiny CogVideoX models on disk: 2b, 5b and 1.5 in what tells them apart."""

from pathlib import Path

import pytest
from tests.model_folders import copied, saved
from tests.tiny import COGVIDEOX_KINDS, cogvideox


@pytest.fixture(scope="session", params=COGVIDEOX_KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a random model, of each kind in turn."""
    return saved(cogvideox(request.param), tmp_path_factory.mktemp("models") / f"tiny-{request.param}")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2b kind."""
    return saved(cogvideox(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def damaged(small: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return copied(small, tmp_path / "model")
