"""What `sample` asks of a model: its scheduler, its dtype, and what is said of what is unusual."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from tests.tiny import cogvideox
from tests.video.planning import planned

from selfnpo_core.sampling.sample_folder import read_records
from selfnpo_video import sampling

SIZE = ("--frames", 9, "--height", 32, "--width", 32, "--steps", 2, "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "scheduler"),
    [
        ((), CogVideoXDDIMScheduler),
        (("--scheduler", "ddim"), CogVideoXDDIMScheduler),
        (("--scheduler", "dpm"), CogVideoXDPMScheduler),
    ],
)
def test_a_scheduler_is_chosen_with_trailing_timesteps(small: Path, tmp_path: Path, words: Any, scheduler: Any) -> None:
    job = planned("--model", small, *SIZE, *words)
    made = job.load().pipe.scheduler
    assert type(made) is scheduler
    made.set_timesteps(4)
    assert made.timesteps.tolist() == [999, 749, 499, 249]
    assert (made.config.prediction_type, made.config.snr_shift_scale) == ("v_prediction", 3.0)
    sampling.sample(job, tmp_path / "clips")
    assert {r["scheduler"] for r in read_records(tmp_path / "clips" / "metadata.jsonl")} == {scheduler.__name__}


def test_a_scheduler_of_other_timesteps_becomes_trailing_when_chosen(tmp_path: Path) -> None:
    pipe = cogvideox()
    pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    pipe.save_pretrained(tmp_path / "model")
    firsts = {}
    for name in ("auto", "ddim", "dpm"):
        made = planned("--model", tmp_path / "model", *SIZE, "--scheduler", name).load().pipe.scheduler
        made.set_timesteps(4)
        firsts[name] = made.timesteps.tolist()
    assert firsts == {"auto": [999, 666, 333, 0], "ddim": [999, 749, 499, 249], "dpm": [999, 749, 499, 249]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--dynamic-guidance",), True),
        (("--dynamic-guidance", "--scheduler", "ddim"), True),
        (("--dynamic-guidance", "--scheduler", "dpm"), False),
        (("--scheduler", "ddim"), False),
    ],
)
def test_dynamic_guidance_with_ddim_is_told_of(small: Path, caplog: Any, words: Any, said: bool) -> None:
    planned("--model", small, *SIZE, *words)
    assert ("here with DDIM: --scheduler dpm" in caplog.text) == said


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("2b", ("--frames", 17), "trained on 9 frames, and is to see 17 at a time: --window 9"),
        ("2b", ("--frames", 33, "--window", 17), "trained on 9 frames, and is to see 17 at a time: --window 9"),
        ("2b", ("--frames", 17, "--window", 9), None),
        ("2b", ("--frames", 9), None),
    ],
)
def test_more_frames_than_a_model_was_trained_on_are_told_of(
    tmp_path: Path, caplog: Any, kind: str, words: Any, said: str | None
) -> None:
    cogvideox(kind).save_pretrained(tmp_path / "model")
    planned("--model", tmp_path / "model", *SIZE, *words)
    assert said in caplog.text if said else "at a time" not in caplog.text


@pytest.mark.parametrize("stored", ["fp32", "bf16", "fp16"])
def test_an_unknown_model_is_sampled_as_it_is_stored(tmp_path: Path, monkeypatch: Any, stored: str) -> None:
    """And not as the known model is whose other defaults it gets."""
    cogvideox().to(sampling.DTYPES[stored]).save_pretrained(tmp_path / "model")
    monkeypatch.setattr("selfnpo_core.sampling.job.best_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("selfnpo_video.memory.available", lambda device: 1 << 40)
    size = ("--frames", 9, "--height", 32, "--width", 32)
    assert planned("--model", tmp_path / "model", *size).dtype == stored
    assert planned("--model", tmp_path / "model", *size, "--dtype", "fp16").dtype == "fp16"
    known = planned("--model", "demo", "--prompts", "builtin")
    assert known.dtype == "fp32"
