"""What the null branch is given: in training by the recipe, in sampling by what the weights say of their training."""

import json
import logging
from pathlib import Path

import pytest
import torch
from tests.image.conftest import Command, quick
from tests.image.test_sampling import options

from selfnpo_core.guidance import NULL
from selfnpo_image import sampling
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sd15 import SD15

TEXT = "blurry, still"


def test_the_null_row_is_that_texts(folder: Path) -> None:
    backbone = SD15(find_base(str(folder)), device="cpu", null_prompt=TEXT)
    backbone.embed(["a red fox"])
    expected = load_pipeline(find_base(str(folder))).encode_prompt([TEXT], "cpu", 1, False)[0][0]
    torch.testing.assert_close(backbone._table[0][NULL], expected)
    plain = SD15(find_base(str(folder)), device="cpu")
    plain.embed(["a red fox"])
    assert not torch.allclose(plain._table[0][NULL], expected, atol=1e-3)


def test_it_is_recorded_and_obeyed(
    folder: Path, prompts_file: Path, tmp_path: Path, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    sets = (*quick("steps=1", "learning_rate=0.3", "max_drift=100"), "--set", f"null_prompt={TEXT}")
    assert command("train", "--model", folder, "--prompts", prompts_file, "--output", run, *sets) == 0
    assert json.loads((run / "npo" / "npo_config.json").read_text())["null_prompt"] == TEXT

    def told(**changes: object) -> str | None:
        return sampling.plan(options(folder, npo=str(run), **changes)).settings.negative_prompt

    with caplog.at_level(logging.INFO):
        assert told() == TEXT
    assert f"null prompt: '{TEXT}'" in caplog.text
    assert told(negative_prompt="") == ""
    assert "were trained with the null prompt" in caplog.text
    assert told(negative_condition="prompt") is None
    assert sampling.plan(options(folder)).settings.negative_prompt is None
