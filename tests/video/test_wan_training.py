"""Training Wan: from the command line to a LoRA that stock diffusers loads, and what it is said to cost."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file
from tests.tiny import wan

from selfnpo_core.commands.running import run
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training import build_recipe, dry_run
from selfnpo_video import memory
from selfnpo_video.cli import selfnpo_video
from selfnpo_video.families import find_base, presets_for
from selfnpo_video.models import KNOWN
from selfnpo_video.shapes import ClipSize
from selfnpo_video.streaming import decode_stream
from selfnpo_video.video_files import read_video
from selfnpo_video.wan import WAN, Wan

PROMPTS = ["a red circle moves left", "a blue square grows"]
CLIP = {"frames": 9, "height": 32, "width": 32}
NULL = "ugly, still"
SMALL = {"steps": 2, "batch_size": 2, "pool_size": 12, "grid_steps": 3, "rank": 2, "trackers": [], "device": "cpu"}
FINISHED = {"rollout": "samples", "loss": "denoising", "samples": 4, "sample_grid_steps": 2, "uses": 4}


def command(*words: object) -> int:
    return run(selfnpo_video, [str(word) for word in words], name="selfnpo-video")


def settings(**changes: Any) -> list[str]:
    values = {**SMALL, **FINISHED, **CLIP, "learning_rate": 0.1, "max_drift": 100, "samples_cache": None}
    values |= {"embeddings_cache": None, "mixed_precision": "no", "grad_accumulation": 1, "sample_every": 0}
    return [w for key, value in {**values, **changes}.items() for w in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return tmp_path / "prompts.txt"


def test_a_run_from_the_command_line(
    wan_folder: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """train → the same in two parts with --resume → stock diffusers → inspect → sample → compare."""
    words = ("--model", wan_folder, "--prompts", prompts)
    runs = tmp_path / "whole", tmp_path / "parts"
    own = {"null_prompt": NULL}
    assert command("train", *words, "--output", runs[0], *settings(**own, sample_every=2, sample_steps=2)) == 0
    assert command("train", *words, "--output", runs[1], *settings(**own, steps=1)) == 0
    assert command("train", "--resume", "--output", runs[1], "--set", "steps=2") == 0
    one, two = (load_file(folder / "npo" / "pytorch_lora_weights.safetensors") for folder in runs)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    config = json.loads((runs[0] / "npo" / "npo_config.json").read_text())
    assert (config["family"], config["null_prompt"]) == ("wan", NULL)
    frames, fps = read_video(runs[0] / "samples" / "step-000002.mp4")
    assert (len(frames), fps) == (CLIP["frames"], 16)
    pipe = WanPipeline.from_pretrained(wan_folder)
    pipe.load_lora_weights(runs[0] / "npo", adapter_name="npo")
    loaded = dict(pipe.transformer.named_parameters())
    assert sum(".lora_" in name for name in loaded) == len(one)
    for key, tensor in one.items():
        name = key.removeprefix("transformer.").replace(".weight", ".npo.weight")
        torch.testing.assert_close(loaded[name].detach(), tensor)
    capsys.readouterr()
    assert command("inspect", runs[0], "--model", wan_folder, "--json", "--trajectories", 2) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["null_prompt"] == NULL
    assert facts["decomposition"]["overall"]["size"] > 1e-3
    size = [word for key, value in CLIP.items() for word in (f"--{key}", value)]
    draw = ["--model", wan_folder, "--prompt", PROMPTS[0], *size, "--steps", 2, "--seed", 3, "--device", "cpu"]
    with caplog.at_level(logging.INFO):
        assert command("compare", *draw, "--npo", runs[0], "--guidance-scale", 5, "--output", tmp_path / "both") == 0
    assert f"null prompt: '{NULL}', with which the negative weights were trained" in caplog.text
    arms = [tmp_path / "both" / arm for arm in ("without", "with")]
    records = [json.loads((arm / "metadata.jsonl").read_text()) for arm in arms]
    assert {record["negative_prompt"] for record in records} == {NULL}
    assert records[0]["scheduler"] == "UniPCMultistepScheduler"
    without, with_npo = (read_video(arm / "00000-3.mp4")[0] for arm in arms)
    assert without.shape == with_npo.shape == (9, 32, 32, 3)
    assert (without != with_npo).any()
    long = ["--frames", 17, "--window", 9, "--scheduler", "euler", "--output", tmp_path / "long"]
    assert command("sample", *draw, *long) == 0
    assert len(read_video(tmp_path / "long" / "00000-3.mp4")[0]) == 17


@pytest.mark.parametrize("changes", [{"chunk_frames": 2}, {"train": "full"}, {"gradient_checkpointing": True}])
def test_other_ways_to_train(small_wan: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    words = ("--model", small_wan, "--prompts", prompts, "--output", tmp_path / "run")
    pool = {"rollout": "pool", "loss": "huber", "loss_weighting": "none", "samples": None, "sample_grid_steps": None}
    recipe = {**(pool if "chunk_frames" in changes else {}), **changes}
    drawn = {"average": None} if "chunk_frames" in changes else {}
    assert command("train", *words, *settings(**recipe, **drawn)) == 0
    (weights,) = (tmp_path / "run" / "npo").glob("*.safetensors")
    assert any(tensor.any() for tensor in load_file(weights).values())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_sketch_costs_what_the_model_costs(wan_folder: Path, precision: str) -> None:
    base, dtype = find_base(str(wan_folder)), torch.float32 if precision == "no" else torch.bfloat16
    recipe = build_recipe({**SMALL, **FINISHED, **CLIP, "mixed_precision": precision})
    one, other = Wan(base, **CLIP, dtype=dtype, device="cpu"), Wan.sketch(base, **CLIP, dtype=dtype)
    assert all(parameter.is_meta for parameter in other.denoiser.parameters())
    assert (one.latent_shape, one.bytes_per_prompt) == (other.latent_shape, other.bytes_per_prompt)
    real, drawn = (dry_run(backbone, recipe, PROMPTS) for backbone in (one, other))
    assert (drawn.trained_parameters, drawn.network_parameters) == (real.trained_parameters, real.network_parameters)
    for ours, theirs in zip(drawn.memory, real.memory, strict=True):
        assert ours.name == theirs.name
        assert ours.bytes == pytest.approx(theirs.bytes, rel=0.1), ours.name


def test_presets(small_wan: Path) -> None:
    assert presets_for(find_base("wan2.1-1.3b"))["lora"] == {**WAN.presets["lora"], "mixed_precision": "bf16"}
    wide = presets_for(find_base("wan2.1-14b"))["lora"]["learning_rate"]
    assert wide == pytest.approx(WAN.presets["lora"]["learning_rate"] * 1536 / 5120, rel=1e-2)
    for kind, preset in {**WAN.presets, **WAN.paper}.items():
        build_recipe({**preset, "train": kind})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["wan2.1-1.3b", pytest.param("Wan-AI/Wan2.2-TI2V-5B-Diffusers", marks=pytest.mark.exhaustive)]
)
def test_dry_run_of_a_known_model_without_its_weights(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """At a small size, so that simulating it takes seconds."""
    small = [f"--set={key}={value}" for key, value in {"frames": 5, "height": 64, "width": 64}.items()]
    assert command("train", "--model", name, "--dry-run", *small) == 0
    known = next(model for model in KNOWN.values() if name in (model.name, model.hub_id))
    said = capsys.readouterr().out
    assert f"of {known.parameters:,}" in said
    assert "encode prompts" in said


@pytest.mark.slow
@torch.no_grad()
def test_the_estimate_is_near_what_is_measured(tmp_path: Path) -> None:
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=32, text_dim=32, freq_dim=32, ffn_dim=1120, num_layers=2
    )
    vae = diffusers.AutoencoderKLWan(base_dim=16)
    pipe = wan()
    pipe.register_modules(transformer=network.eval(), vae=vae.eval())
    pipe.save_pretrained(tmp_path)
    made = memory.Sampler(base=find_base(str(tmp_path)), rows=2, dtype=torch.float32, device=torch.device("cpu"))
    size = ClipSize(frames=9, height=64, width=64)
    x, text, t = torch.randn(2, 16, 3, 8, 8), torch.randn(2, 32, 32), torch.full((2,), 500)
    forward = peak_tensor_bytes(lambda: network(x, t, text, return_dict=False))
    assert made.need(size).denoising == pytest.approx(forward, rel=0.3)
    latents = torch.randn(1, 3, 16, 8, 8)
    decode = peak_tensor_bytes(lambda: [None for _ in decode_stream(vae, latents)])
    assert made.need(size).decoding == pytest.approx(decode, rel=0.3)


@pytest.mark.slow
def test_two_processes(small_wan: Path, prompts: Path, tmp_path: Path) -> None:
    words = ["--model", small_wan, "--prompts", prompts, "--output", tmp_path / "run", *settings()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    asked = [*launch, "-m", "selfnpo_video.cli", "train", *map(str, words)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    weights = load_file(tmp_path / "run" / "npo" / "pytorch_lora_weights.safetensors")
    assert any(tensor.any() for tensor in weights.values())
