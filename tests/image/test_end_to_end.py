"""train → inspect → sample → compare on a tiny model, and what a run does not touch."""

import builtins
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from tests.image.conftest import Command, quick
from transformers import CLIPTextModel

from selfnpo_core.commands.train import base_dtype, resolve
from selfnpo_core.system.devices import DTYPES
from selfnpo_core.training import build_recipe, dry_run, stored_recipe, train
from selfnpo_core.training.measuring import measure
from selfnpo_image import compare as comparing
from selfnpo_image.families import find_base
from selfnpo_image.family import IMAGE
from selfnpo_image.recipes import SD15 as PRESETS
from selfnpo_image.sd15 import SD15

SETS = quick()
RECIPE = {"batch_size": 2, "pool_size": 4, "grid_steps": 4, "trackers": [], "device": "cpu", "learning_rate": 1e-2}


def test_the_run_folder(finished_run: Path, folder: Path) -> None:
    config = json.loads((finished_run / "npo" / "npo_config.json").read_text())
    assert (config["family"], config["base_model"], config["train"]) == ("sd15", str(folder), "lora")
    assert len((finished_run / "metrics.jsonl").read_text().splitlines()) == 2
    names = load_file(finished_run / "npo" / "pytorch_lora_weights.safetensors").keys()
    assert all(name.startswith("unet.") for name in names)
    assert {"config.yaml", "prompts.txt", "run.json", "checkpoints"} <= {p.name for p in finished_run.iterdir()}


def test_inspect(
    finished_run: Path, folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("inspect", finished_run, "--model", folder, "--json", "--trajectories", 3) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["schema"], facts["kind"], facts["ranks"]) == (1, "LoRA", [32])
    strength = facts["strength"]
    assert strength["overall"] > 1e-3
    times, ratios = zip(*strength["by_timestep"], strict=True)
    assert list(times) == sorted(times, reverse=True)
    assert (ratios[0], ratios[-1]) == (strength["noisiest"], strength["cleanest"])
    assert min(ratios) <= strength["overall"] <= max(ratios)
    shares = [layer["share"] for layer in facts["by_layer"]]
    assert len(shares) == facts["layers"]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    found = facts["decomposition"]
    assert (found["trajectories"], found["beta"], found["guidance_scale"]) == (3, 1.0, 5.5)
    assert [level["timestep"] for level in found["by_timestep"]] == list(times)
    for level in (*found["by_timestep"], found["overall"]):
        assert level["effective_scale"] == pytest.approx(5.5 - 4.5 * level["k"])
        assert level["size"] > 1e-3
        assert 0 <= level["rest_share"] <= 1
    both = ("--model", folder, "--trajectories", 2, "--plot", tmp_path / "measured.png")
    assert command("inspect", finished_run, *both) == 0
    told = capsys.readouterr().out
    assert "taken apart   on 2 guided trajectories, guidance scale 5.5, beta 1" in told
    assert told.rstrip().splitlines()[-1].startswith("what it is    ")
    assert PIL.Image.open(tmp_path / "measured.png").width > 800
    assert command("inspect", finished_run, "--plot", tmp_path / "strength.png") == 0
    told = capsys.readouterr().out
    assert "not measured" in told
    assert "taken apart" not in told
    assert f"carried by    {shares[0]:6.1%}  {facts['by_layer'][0]['layer']}" in told
    assert PIL.Image.open(tmp_path / "strength.png").width > 800


def test_compare(
    finished_run: Path, folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--prompt", "a red fox", "--prompt", "a boat", "--steps", 2, "--output", tmp_path, "--device", "cpu")
    assert command("compare", "--model", folder, "--npo", finished_run, *words) == 0
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png"))
    pictures = ["00000-0.png", "00001-1.png"]
    assert files == sorted(
        [*pictures, "sheet.png", *(f"{arm}/{name}" for arm in ("with", "without") for name in pictures)]
    )
    left, right = (np.asarray(PIL.Image.open(tmp_path / arm / pictures[0])) for arm in ("without", "with"))
    assert (left != right).any()
    pair = np.asarray(PIL.Image.open(tmp_path / pictures[0]))
    side, zoom = 192, 6
    top = next(y for y in range(len(pair)) if (pair[y : y + side : zoom, :side:zoom] == left).all())
    assert (pair[top : top + side : zoom, side + 4 :: zoom] == right).all()
    assert command("compare", "--model", folder, "--npo", finished_run, *words) == 0
    refusal = command("compare", "--model", folder, "--npo", finished_run, *words, "--seed", 9)
    assert refusal == 2
    assert not (tmp_path / "metrics.json").exists()


def test_compare_writes_what_an_oracle_says(
    finished_run: Path, folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def oracle(prompts: list[str], without: list[Any], with_npo: list[Any]) -> dict[str, Any]:
        return {"judged": len(prompts), "sizes": [len(without), len(with_npo)]}

    monkeypatch.setattr(comparing, "oracle_for", lambda model: oracle)
    words = ("--prompt", "a red fox", "--steps", 1, "--output", tmp_path)
    assert command("compare", "--model", folder, "--npo", finished_run, *words) == 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"schema": 1, "judged": 1, "sizes": [1, 1]}


def test_resume_needs_only_the_run(folder: Path, prompts_file: Path, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    begin = ("train", "--model", folder, "--prompts", prompts_file, "--output", run, *SETS, "--set", "steps=1")
    assert command(*begin) == 0
    assert command("train", "--resume", "--output", run, "--set", "steps=2") == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_runs_are_numbered(
    folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("train", "--model", folder, *SETS, "--set", "targets=none") == 2
    assert not (tmp_path / "runs" / "tiny-1").exists()
    assert command("train", "--model", folder, *SETS, "--set", "steps=1") == 0
    assert (tmp_path / "runs" / "tiny-1" / "npo" / "npo_config.json").is_file()
    assert len((tmp_path / "runs" / "tiny-1" / "prompts.txt").read_text().splitlines()) >= 200


def test_dry_run_writes_nothing(
    folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("train", "--model", folder, *SETS, "--dry-run") == 0
    said = capsys.readouterr().out
    for words in (
        "teacher_guidance: -1.0",
        "parameters trained",
        "4 a row: 1 teacher",
        "memory of an update, estimated",
    ):
        assert words in said
    assert list(tmp_path.iterdir()) == []


def test_by_default_a_base_trains_on_finished_samples_at_the_rate_for_its_width(
    folder: Path, prompts_file: Path, tmp_path: Path, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="selfnpo_core")
    run = tmp_path / "run"
    small = ("steps=2", "batch_size=2", "grad_accumulation=1", "sample_grid_steps=2", "sample_every=0")
    sets = [word for item in (*small, "trackers=[]", "device=cpu", "samples_cache=null") for word in ("--set", item)]
    assert command("train", "--model", folder, "--prompts", prompts_file, "--output", run, *sets) == 0
    assert "learning rate 0.001: the family's 0.0001 at width 320, for a network 32 wide" in caplog.messages
    recipe = stored_recipe(run)
    assert (recipe.rollout, recipe.samples, recipe.learning_rate) == ("samples", 2, 1e-3)
    assert command("train", "--resume", "--output", run, "--set", "steps=3") == 0
    assert stored_recipe(run).samples == 2
    facts = json.loads((run / "npo" / "npo_config.json").read_text())
    assert (facts["rank"], facts["recipe"]["samples"], facts["recommended"]["guidance_scale"]) == (16, 2, [2.0, 4.0])
    trained = load_file(run / "npo" / "pytorch_lora_weights.safetensors")
    assert any("conv" in name for name in trained)


def test_full_weights(
    folder: Path, prompts_file: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [word for item in ("train=full", "steps=1", "learning_rate=0.01") for word in ("--set", item)]
    run = tmp_path / "run"
    assert command("train", "--model", folder, "--prompts", prompts_file, "--output", run, *SETS, *sets) == 0
    assert (run / "npo" / "delta.safetensors").is_file()
    words = ("--prompt", "a", "--steps", 2, "--output", tmp_path / "pair")
    assert command("compare", "--model", folder, "--npo", run, *words) == 0
    left, right = (np.asarray(PIL.Image.open(tmp_path / "pair" / arm / "00000-0.png")) for arm in ("without", "with"))
    assert (left != right).any()
    capsys.readouterr()
    assert command("inspect", run, "--model", folder, "--trajectories", 2) == 0
    assert "what it is" in capsys.readouterr().out


@pytest.mark.parametrize(("guidance", "rows"), [(-1.0, 2), (0.0, 2), (-5.0, 3)])
def test_rows_of_an_update(folder: Path, tmp_path: Path, guidance: float, rows: int) -> None:
    """Counted by a hook on the UNet: the teacher's row or two, and the student's."""
    counts = []
    for steps in (1, 3):
        backbone, seen = SD15(find_base(str(folder)), device="cpu"), []
        backbone.denoiser.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        recipe = build_recipe({**RECIPE, "steps": steps, "teacher_guidance": guidance})
        train(backbone, recipe, ["a", "b"], tmp_path / str(steps), progress=False)
        counts.append(sum(seen))
    assert counts[1] - counts[0] == 2 * rows * RECIPE["batch_size"]  # type: ignore[operator]


def test_updates_touch_neither_vae_nor_text_encoder_nor_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = SD15(find_base(str(folder)), device="cpu")
    opened, resident, plain, predict = [], [], builtins.open, backbone.predict

    def watch_open(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(file))
        return plain(file, *args, **kwargs)

    def watch_predict(*args: Any) -> Any:
        resident.append((backbone.vae_on_device, backbone.text_encoder_on_device))
        return predict(*args)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("used in an update")

    monkeypatch.setattr(builtins, "open", watch_open)
    monkeypatch.setattr(PIL.Image, "open", forbidden)
    monkeypatch.setattr(AutoencoderKL, "encode", forbidden)
    monkeypatch.setattr(AutoencoderKL, "decode", forbidden)
    monkeypatch.setattr(backbone, "predict", watch_predict)
    backbone.embed(["a", "b"])
    monkeypatch.setattr(CLIPTextModel, "forward", forbidden)
    monkeypatch.setattr(backbone, "embed", lambda prompts, cache: None)
    train(backbone, build_recipe({**RECIPE, "steps": 2}), ["a", "b"], tmp_path / "run", progress=False)
    assert resident
    assert set(resident) == {(False, False)}
    assert opened
    assert not [name for name in opened if name.lower().endswith((".png", ".jpg", ".jpeg", ".webp"))]


@pytest.mark.parametrize(("kind", "precision"), [("lora", "no"), ("lora", "bf16"), ("full", "bf16")])
def test_sample_grids_bring_the_vae_in_and_put_it_away(folder: Path, tmp_path: Path, kind: str, precision: str) -> None:
    """Also where the base lies in 16 bits: the network that is trained answers in float32 then."""
    recipe = build_recipe(
        {**RECIPE, "steps": 1, "sample_every": 1, "sample_steps": 2, "train": kind, "mixed_precision": precision}
    )
    backbone = SD15(find_base(str(folder)), device="cpu", dtype=DTYPES[base_dtype(recipe)])
    train(backbone, recipe, ["a", "b"], tmp_path / "run", progress=False)
    with PIL.Image.open(tmp_path / "run" / "samples" / "step-000001.png") as grid:
        assert grid.width == 2 * 32
    assert not backbone.vae_on_device


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{"targets": "all"}, {"train": "full", "mixed_precision": "bf16"}, {"objective": "dpo", "mixed_precision": "bf16"}],
)
def test_the_estimate_for_the_demo_model_is_what_is_seen(changes: dict[str, Any], checkpointing: bool) -> None:
    values = {**RECIPE, "steps": 9, "batch_size": 16, "pool_size": 32, "gradient_checkpointing": checkpointing}
    recipe, backbone = build_recipe({**values, **changes}), SD15(find_base("demo"), device="cpu")
    asked = dry_run(backbone, recipe, ["a", "b"]).device_bytes
    assert asked == pytest.approx(measure(backbone, recipe, ["a", "b"]).bytes, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.exhaustive)]
)
def test_a_signal_saves_and_says_how_to_go_on(
    folder: Path, prompts_file: Path, tmp_path: Path, command: Command, number: int, code: int
) -> None:
    run = tmp_path / "run"
    words = ["train", "--model", folder, "--prompts", prompts_file, "--output", run, *SETS, "--set", "steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "selfnpo_image.cli", *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 400
    while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("selfnpo-image: error: stopped and saved after update")
    assert "--resume" in last
    done = len((run / "metrics.jsonl").read_text().splitlines())
    assert command("train", "--resume", "--output", run, "--set", f"steps={done + 1}") == 0


def test_presets_and_dtypes() -> None:
    options = {"model": "sd15", "prompts": None, "output": None, "config": None, "resume": False}
    _, full = resolve(IMAGE, {**options, "overrides": ["train=full"]})
    assert (full.train, full.learning_rate) == ("full", PRESETS["full"]["learning_rate"])
    _, lora = resolve(IMAGE, {**options, "overrides": ["mixed_precision=bf16"]})
    assert (lora.train, lora.rank) == ("lora", PRESETS["lora"]["rank"])
    assert base_dtype(lora) == "bf16"
    assert base_dtype(full.model_copy(update={"mixed_precision": "bf16"})) == "fp32"
