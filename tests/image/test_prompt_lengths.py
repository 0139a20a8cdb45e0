"""`sample`, `compare` and `evaluate` say what they do not read of prompts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import clip_model

from selfnpo_core.evaluation.clip import REPO, clip
from selfnpo_core.evaluation.networks import Ready
from selfnpo_core.evaluation.run import _said_cut
from selfnpo_image.drawing import Settings
from selfnpo_image.families import find_base
from selfnpo_image.sampling import Job

LONG = "a very long tale " * 40


def test_of_samples(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(guidance_scale=3.0, steps=1, negative_prompt=LONG)
    asked = Job(
        base=find_base(str(folder)),
        prompts=["a cat", "a cat", LONG + "more", "a dog"],
        seeds=[0, 1, 2, 3],
        settings=settings,
        negative=None,
        dtype="fp32",
        device=torch.device("cpu"),
    )
    asked.load()
    assert "2 of 4 prompts are longer than 77 tokens: the rest of them is cut" in caplog.text


def test_of_judges(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip_model(tmp_path / REPO)
    ready = Ready.of(clip(), tmp_path, "clip_score")
    arm: Any = SimpleNamespace(good=[SimpleNamespace(prompt=text) for text in ("a cat", LONG, LONG)])
    folders: Any = SimpleNamespace(one=arm, other=None)
    tokens = clip_model(tmp_path / "other").config.text_config.max_position_embeddings
    assert _said_cut({"clip": ready}, folders) == {"clip": {"prompts_cut": 1, "tokens": tokens}}
    assert f"clip: 1 of 2 prompts are longer than {tokens} tokens: the rest of them is not read" in caplog.text
