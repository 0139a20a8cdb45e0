"""A tiny SD1.5-class model on disk, and a run of two updates on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.model_folders import saved
from tests.tiny import sd15

from selfnpo_core.commands.running import run
from selfnpo_image.cli import selfnpo_image

QUICK = ("batch_size=2", "pool_size=4", "grid_steps=4", "trackers=[]", "device=cpu", "sample_every=0")
Command = Callable[..., int]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a random model: 16×16 latents, 32×32 pictures."""
    return saved(sd15(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red fox\n  ein blauer Würfel \na small boat\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_run(folder: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates at a rate that changes pictures visibly."""
    output = tmp_path_factory.mktemp("runs") / "run"
    words = quick("steps=2", "learning_rate=0.3", "max_drift=100")
    code = selfnpo("train", "--model", folder, "--prompts", prompts_file, "--output", output, *words)
    assert code == 0
    return output


def quick(*keys: str) -> list[str]:
    """What makes a training small: one of the pool, which draws nothing beforehand."""
    return ["--config", "paper", *(word for key in (*QUICK, *keys) for word in ("--set", key))]


def selfnpo(*words: object) -> int:
    """The exit code of a command line, run in this process."""
    return run(selfnpo_image, [str(word) for word in words], name="selfnpo-image")


@pytest.fixture
def command() -> Command:
    return selfnpo


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, and nothing of it in the cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
