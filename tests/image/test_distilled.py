"""Models in which no negative branch runs: known by name or configuration, trained for Neon, never a silent nothing."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from tests.image.conftest import Command
from tests.tiny import PIPELINES, flux2_klein, sd15, z_image

from selfnpo_core.commands.inspect import _acts_on
from selfnpo_core.errors import InputError
from selfnpo_core.weights.npo_folder import Npo
from selfnpo_image.families import find_base, presets_for
from selfnpo_image.loading import load_pipeline
from selfnpo_image.models import KNOWN, NOT_TAKEN, defaults

SMALL = ("batch_size=2", "grad_accumulation=1", "samples=4", "steps=2", "rank=4", "learning_rate=0.1", "max_drift=100")
AWAY = ("samples_cache=null", "embeddings_cache=null", "trackers=[]", "device=cpu", "mixed_precision=no")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "klein"
    flux2_klein(is_distilled=True).save_pretrained(path)
    return path


def test_neon_and_an_adapter_of_a_distilled_model(
    model: Path,
    prompts_file: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    sets = [word for key in (*SMALL, *AWAY, "height=32", "width=32") for word in ("--set", key)]
    assert command("train", "--model", model, "--prompts", prompts_file, "--output", run, *sets) == 0
    assert caplog.text.count("is distilled and runs no negative branch: weights that are trained") == 1
    config = json.loads((run / "npo" / "npo_config.json").read_text())
    assert config["recommended"]["rule"]["name"] == "neon"
    told = ("sample_guidance", "sample_grid_steps", "student_prompt_dropout", "sample_every")
    assert [config["recipe"][key] for key in told] == [1.0, 4, 0.0, 0]

    words = ("--model", model, "--prompt", "a red fox", "--steps", 2, "--device", "cpu", "--height", 32, "--width", 32)
    assert command("compare", *words, "--npo", run, "--output", tmp_path / "neon") == 0
    arms = [np.asarray(PIL.Image.open(tmp_path / "neon" / arm / "00000-0.png")) for arm in ("without", "with")]
    assert (arms[0] != arms[1]).any()
    capsys.readouterr()
    for scale in (1, 4):  # the pipeline guides at none
        two = (*words, "--npo", run, "--npo-rule", "two_branch", "--guidance-scale", scale, "--output", tmp_path / "no")
        assert command("sample", *two) == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
        assert "runs no negative branch, so that these weights would change nothing: give --npo-rule neon" in error

    pipe = load_pipeline(find_base(str(model)))
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"prompt": "a red fox", "num_inference_steps": 2, "height": 32, "width": 32}
    drawn = []
    for adapted in (False, True):
        if adapted:
            pipe.load_lora_weights(run / "npo")
        seed = torch.Generator().manual_seed(0)
        drawn.append(pipe(**call, guidance_scale=1.0, generator=seed, output_type="latent").images)
    assert (drawn[0] - drawn[1]).norm() > 1e-3 * drawn[0].norm()


def test_inspect_says_that_nothing_acts(model: Path) -> None:
    two_branch = Npo(path=model, kind="lora", tensors={}, config=None)
    assert "runs no negative branch, so they act by rule neon only" in _acts_on(two_branch, find_base(str(model)))


def test_a_distilled_model_is_known_by_its_configuration(model: Path, tmp_path: Path) -> None:
    klein = find_base(str(model))
    assert klein.distilled
    assert defaults(klein).name == "flux2-klein-4b"
    turbo = z_image()
    for shift in (6.0, 3.0):
        turbo.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        turbo.save_pretrained(tmp_path / f"{shift:g}")
        assert find_base(str(tmp_path / f"{shift:g}")).distilled == (shift == 3)
    consistency = sd15()
    consistency.scheduler = diffusers.LCMScheduler.from_config(consistency.scheduler.config)
    consistency.save_pretrained(tmp_path / "lcm")
    assert find_base(str(tmp_path / "lcm")).distilled
    PIPELINES["flux2-klein"]().save_pretrained(tmp_path / "base")
    base = find_base(str(tmp_path / "base"))
    assert not base.distilled
    assert defaults(base).name == "flux2-klein-base-4b"


def test_distilled_names_have_presets_that_draw_as_they_are_drawn() -> None:
    names = [name for name, known in KNOWN.items() if known.distilled]
    assert {"sdxl-turbo", "sd3.5-large-turbo", "z-image-turbo", "flux2-klein-4b"} <= set(names)
    for name in names:
        base = find_base(name)
        assert base.distilled
        assert KNOWN[name].guidance_scale == 1
        for preset in presets_for(base).values():
            assert (preset["sample_guidance"], preset["sample_grid_steps"]) == (1.0, KNOWN[name].steps)


@pytest.mark.parametrize("name", [*NOT_TAKEN, *(hub_id for hub_id, _ in NOT_TAKEN.values())])
def test_models_of_no_family_are_named(name: str) -> None:
    with pytest.raises(InputError, match="without a negative branch, where negative weights have nothing to act on"):
        find_base(name)


@pytest.mark.parametrize(
    ("pipeline", "why"),
    [
        ("FluxPipeline", "without a negative branch"),
        ("Flux2Pipeline", "without a negative branch"),
        ("LatentConsistencyModelPipeline", "without a negative branch"),
        ("QwenImageEditPipeline", "for editing or filling pictures"),
        ("ZImageOmniPipeline", "for editing or filling pictures"),
        ("Flux2KleinInpaintPipeline", "for editing or filling pictures"),
    ],
)
def test_pipelines_of_no_family_say_why(pipeline: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(InputError, match=why):
        find_base(str(tmp_path))
    assert hasattr(diffusers, pipeline)
