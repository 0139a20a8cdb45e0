"""What is denoised is not denoised again: latents wait on the disk until their clip is written, by tiles if need be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.video.planning import planned

from selfnpo_core.errors import RunError
from selfnpo_core.sampling.sample_folder import read_records
from selfnpo_video import clips, memory, sampling
from selfnpo_video.video_files import read_video

SIZE = ("--frames", 9, "--height", 32, "--width", 32, "--steps", 2, "--device", "cpu")
PROMPTS = ("--prompt", "a red circle", "--prompt", "a blue square", "--prompt", "a green ring", "--batch-size", 2)


@pytest.fixture
def job(small: Path) -> Callable[..., sampling.Job]:
    return lambda *words: planned("--model", small, *SIZE, *PROMPTS, *words)


def out_of_memory(monkeypatch: Any, fails: Callable[[Any], bool]) -> list[bool]:
    """Let decoding fail where `fails(vae)`; returns whether each attempt was tiled."""
    attempts: list[bool] = []
    decode = clips.decode_stream

    def stub(vae: Any, latents: torch.Tensor) -> Any:
        attempts.append(vae.use_tiling)
        if fails(vae):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(vae, latents)

    monkeypatch.setattr(clips, "decode_stream", stub)
    return attempts


def denoised(monkeypatch: Any) -> list[int]:
    """How many clips each call of the pipeline was asked for."""
    calls: list[int] = []
    draw = sampling.latent_batches

    def counted(pipe: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        for batch in draw(pipe, prompts, *args, **options):
            calls.append(len(batch))
            yield batch

    monkeypatch.setattr(sampling, "latent_batches", counted)
    return calls


def frames_in(folder: Path) -> list[np.ndarray]:
    return [read_video(file)[0] for file in sorted(folder.glob("*.mp4"))]


def test_decoding_out_of_memory_once_goes_on_by_tiles(job: Any, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    failed: list[bool] = []
    attempts = out_of_memory(monkeypatch, lambda vae: not failed and not failed.append(True))
    assert sampling.sample(job(), tmp_path / "clips") == 3
    assert attempts == [False, True, True, True]
    assert "the clip of seed 0: it and what follows is decoded tile by tile" in caplog.text
    lines = read_records(tmp_path / "clips" / "metadata.jsonl")
    assert [(line["tiling"], line["tiled"]) for line in lines] == [(False, True)] * 3
    assert not (tmp_path / "clips" / ".latents").exists()
    sampling.sample(job("--tiling"), tmp_path / "tiled")
    for ours, asked in zip(frames_in(tmp_path / "clips"), frames_in(tmp_path / "tiled"), strict=True):
        assert np.array_equal(ours, asked)
    assert "tiled" not in read_records(tmp_path / "tiled" / "metadata.jsonl")[0]
    assert sampling.sample(job(), tmp_path / "clips") == 0  # its lines are no others' for it


def test_what_cannot_be_decoded_is_decoded_by_the_same_command(
    job: Any, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    calls, output = denoised(monkeypatch), tmp_path / "clips"
    with monkeypatch.context() as patch:
        out_of_memory(patch, lambda vae: True)
        with pytest.raises(RunError, match=r"the clip of seed 0 tile by tile: free .* is kept"):
            sampling.sample(job(), output)
    assert sorted(file.name for file in (output / ".latents").iterdir()) == [
        "00000-0.safetensors",
        "00001-1.safetensors",
    ]
    assert (calls, frames_in(output)) == ([2], [])
    with caplog.at_level("INFO"):
        assert sampling.sample(job(), output) == 3
    assert calls == [2, 1]  # the first two are not denoised again
    assert "2 clips were denoised before" in caplog.text
    assert not (output / ".latents").exists()
    sampling.sample(job(), tmp_path / "at once")
    for ours, whole in zip(frames_in(output), frames_in(tmp_path / "at once"), strict=True):
        assert np.array_equal(ours, whole)


def test_latents_that_were_made_otherwise_are_not_used(job: Any, tmp_path: Path, monkeypatch: Any) -> None:
    calls, output = denoised(monkeypatch), tmp_path / "clips"
    with monkeypatch.context() as patch:
        out_of_memory(patch, lambda vae: True)
        with pytest.raises(RunError):
            sampling.sample(job(), output)
    (output / ".latents" / "00001-1.safetensors").write_bytes(b"cut off")
    assert sampling.sample(job("--guidance-scale", 3), output) == 3
    assert calls == [2, 2, 1]
    assert not (output / ".latents").exists()


def test_no_tiling_is_obeyed(job: Any, tmp_path: Path, monkeypatch: Any) -> None:
    attempts = out_of_memory(monkeypatch, lambda vae: not vae.use_tiling)
    with pytest.raises(RunError, match="whole: leave --no-tiling out, and repeat"):
        sampling.sample(job("--no-tiling"), tmp_path / "clips")
    assert attempts == [False]
    assert sampling.sample(job(), tmp_path / "clips") == 3


def test_decoding_is_tiled_where_whole_frames_do_not_fit(small: Path, monkeypatch: Any, caplog: Any) -> None:
    words = ("--model", small, "--frames", 9, "--height", 512, "--width", 512, "--device", "cpu")
    base = planned(*words).base
    sampler = memory.Sampler(base=base, rows=2, dtype=torch.float32, device=torch.device("cpu"))
    size = base.size_of(9, 512, 512)
    free = sampler.need(size).peak - 1
    monkeypatch.setattr(memory, "available", lambda device: free)
    job = planned(*words)
    assert (job.tiling, job.tiled, job.load().pipe.vae.use_tiling) == (None, True, True)
    assert "9×512×512 are decoded tile by tile" in caplog.text
    free = sampler.need(size).peak
    job = planned(*words)
    assert (job.tiled, job.load().pipe.vae.use_tiling) == (False, False)


def test_a_folder_of_before_is_gone_on_with(job: Any, tmp_path: Path) -> None:
    """Lines that say nothing of how decoding went, in a folder that lacks its last clip."""
    sampling.sample(job(), tmp_path / "clips")
    metadata = tmp_path / "clips" / "metadata.jsonl"
    lines = [json.loads(line) for line in metadata.read_text().splitlines()]
    assert all("tiled" not in line and line["tiling"] is False for line in lines)
    (tmp_path / "clips" / lines[-1]["file"]).unlink()
    assert sampling.sample(job(), tmp_path / "clips") == 1
