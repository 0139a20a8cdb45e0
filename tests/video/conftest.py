"""Tiny models on disk: CogVideoX 2b, 5b and 1.5 in what tells them apart, and Wan 2.1 and 2.2 TI2V-5B."""

from pathlib import Path

import pytest
from tests.model_folders import copied, saved
from tests.tiny import COGVIDEOX_KINDS, WAN_KINDS, cogvideox, wan


@pytest.fixture(scope="session", params=COGVIDEOX_KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a random model, of each kind in turn."""
    return saved(cogvideox(request.param), tmp_path_factory.mktemp("models") / f"tiny-{request.param}")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2b kind."""
    return saved(cogvideox(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session", params=WAN_KINDS)
def wan_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a random Wan model that draws with UniPC, of each kind in turn."""
    return saved(wan(request.param, unipc=True), tmp_path_factory.mktemp("models") / f"wan-{request.param}")


@pytest.fixture(scope="session")
def small_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2.1 kind, which draws with Euler."""
    return saved(wan(), tmp_path_factory.mktemp("models") / "wan")


@pytest.fixture
def damaged(small: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return copied(small, tmp_path / "model")
