"""Recipes run at toy size through their real engines on two processes, from prompts to npo/."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import cogvideox, sd15, sdxl
from tests.tools.launching import environment, free_port
from tests.tools.test_recipes import RECIPES, family_of

from selfnpo_core.training import Recipe, resolve_recipe, stored_recipe
from selfnpo_core.training.checkpoint import damage_of, newest_checkpoint
from selfnpo_core.training.resolving import model_of
from selfnpo_core.weights.npo_folder import load_npo

SCRIPT = Path(__file__).with_name("every_recipe.py")
MODELS = {
    "sd15": sd15,
    "sdxl": sdxl,
    "cogvideox-2b": lambda: cogvideox("2b"),
    "cogvideox-5b": lambda: cogvideox("5b"),
    "cogvideox-1.5-5b": lambda: cogvideox("1.5"),
}
IN_EVERY_RUN = ("cogvideox-2b-zero3", "sdxl-nodes", "cogvideox-5b-lora")
"""ZeRO-3, FSDP2 and DDP, in bf16 with gradient checkpointing, as all of them are. The rest takes minutes."""
GROUPS = (
    pytest.param(IN_EVERY_RUN, marks=pytest.mark.slow, id="one an engine"),
    pytest.param(
        tuple(path.stem for path in RECIPES if path.stem not in IN_EVERY_RUN),
        marks=pytest.mark.exhaustive,
        id="all others",
    ),
)
TOY = {
    "steps": 2,
    "batch_size": 1,
    "grad_accumulation": 1,
    "samples": 4,
    "uses": 1,
    "sample_grid_steps": 2,
    "grid_steps": 3,
    "sample_steps": 2,
    "sample_prompts": '["a red fox", "a blue boat"]',
    "sample_guidance_scales": "[2.0]",
    "rank": 4,
    "samples_cache": "null",
    "embeddings_cache": "null",
    "trackers": "[]",
    "device": "cpu",
    "max_drift": 9,
    "process_timeout": 120,
}


def recipe_of(path: Path) -> Recipe:
    family, model = family_of(model_of(path, ())), model_of(path, ())
    return resolve_recipe(family.presets(family.find(model, None)), path)


def toy(path: Path) -> dict[str, object]:
    """What makes it small, and what a CPU cannot do; the rest is the recipe's."""
    recipe, changes = recipe_of(path), dict(TOY)
    if recipe.mixed_precision == "fp16":
        changes["mixed_precision"] = "bf16"
    if recipe.optimizer == "adamw8bit":
        changes["optimizer"] = "adamw"
    if recipe.rollout == "pool":
        changes["pool_size"] = 8
    if recipe.sample_every:
        changes["sample_every"] = 2
    if recipe.chunk_frames is not None:
        changes["chunk_frames"] = 2
    if recipe.model.startswith("cogvideox"):
        changes |= {"frames": 9, "height": 64, "width": 64}
    return changes


def words_of(path: Path, model: Path, output: Path) -> list[str]:
    family = "video" if recipe_of(path).model.startswith("cogvideox") else "image"
    words = ["--family", family, "--config", str(path), "--model", str(model), "--output", str(output)]
    return words + [word for key, value in toy(path).items() for word in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("names", GROUPS)
def test_a_recipe_runs_on_two_processes(names, tmp_path):
    paths = [path for path in RECIPES if path.stem in names]
    for model in {recipe_of(path).model for path in paths}:
        MODELS[model]().save_pretrained(tmp_path / "models" / model)
    asked = {
        path.stem: (free_port(), words_of(path, tmp_path / "models" / recipe_of(path).model, tmp_path / path.stem))
        for path in paths
    }
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    place = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen([sys.executable, SCRIPT, tmp_path], env=environment(**place, RANK=rank, LOCAL_RANK=rank))
        for rank in "01"
    ]
    assert [process.wait(800) for process in started] == [0, 0]
    answers = {(name, rank): (tmp_path / f"{name}-{rank}.txt").read_text() for name in asked for rank in "01"}
    assert answers == dict.fromkeys(answers, "done")
    for path in paths:
        assert_whole(path, tmp_path / path.stem)


def assert_whole(path: Path, run: Path) -> None:
    wanted, found = recipe_of(path), stored_recipe(run)
    kept = ("engine", "train", "objective", "loss", "rollout", "gradient_checkpointing", "base_storage", "targets")
    assert {key: getattr(found, key) for key in kept} == {key: getattr(wanted, key) for key in kept}
    assert found.gradient_checkpointing
    assert found.mixed_precision == "bf16"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert load_npo(run).kind == ("lora" if wanted.train == "lora" else "delta")  # which has an effect, or is refused
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert damage_of(newest) is None
    shared = {file.name for file in newest.glob("*-of-00002.safetensors")}
    parts = ("student", "teacher", "optimizer") if wanted.train == "full" else ()
    assert shared == {f"{part}-0000{k}-of-00002.safetensors" for part in parts for k in (1, 2)}
    pictures = {file.suffix for file in (run / "samples").glob("step-000002.*")} if wanted.sample_every else set()
    video = wanted.model.startswith("cogvideox")
    assert pictures == (({".png", ".mp4"} if video else {".png"}) if wanted.sample_every else set())
    assert (run / "latents").is_dir() is (wanted.rollout == "samples")
