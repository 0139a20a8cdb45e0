"""`--config paper` is the paper's recipe whatever the defaults become: all that decides a run, for all known models."""

import pytest

from selfnpo_core import InputError
from selfnpo_core.commands.family import AnyFamily
from selfnpo_core.commands.train import resolve
from selfnpo_core.training.presets import NAMES, PAPER, name_or_file
from selfnpo_core.training.recipe import Recipe
from selfnpo_image.family import IMAGE
from selfnpo_video.family import VIDEO

RULE = {"name": "two_branch", "weight": None, "switch": None, "beta_knots": ()}
ALL = {
    "steps": 1000,
    "batch_size": 20,
    "grad_accumulation": 1,
    "lr_schedule": "constant",
    "warmup_steps": 0,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "rank": 16,
    "lora_alpha": None,
    "targets": "attention",
    "objective": "tdft",
    "loss": "huber",
    "loss_weighting": "none",
    "teacher_guidance": -1.0,
    "advance_guidance": None,
    "student_prompt_dropout": 0.0,
    "ema_decay": 0.999,
    "rollout": "pool",
    "grid_steps": 25,
    "truncation_steps": 5,
    "pool_size": 256,
    "pool_target": "estimate",
    "chunk_frames": None,
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "negative_condition": "null",
    "recommended": {"beta": 1.0, "alpha": 1.0, "guidance_scale": (3.0, 8.0), "rule": RULE},
    "sample_every": 250,
}
SDXL = {"batch_size": 10, "pool_size": 100, "mixed_precision": "bf16", "gradient_checkpointing": True}
VIDEOS = {"steps": 500, "batch_size": 1, "grad_accumulation": 8, "pool_size": 50, "gradient_checkpointing": True}
DEMO = {
    "student_prompt_dropout": 0.5,
    "recommended": {"beta": 0.5, "alpha": 1.0, "guidance_scale": (2.0, 5.0), "rule": RULE},
    "sample_every": 0,
}
OWN = {
    "sd15": {},
    "sdxl": {**SDXL, "teacher_guidance": -5.0, "advance_guidance": 0.0},  # −5 leads from noise to no sample
    "sd3": SDXL,
    "cogvideox": {**VIDEOS, "mixed_precision": "bf16"},
    "wan": {**VIDEOS, "mixed_precision": "bf16"},
    "image demo": {**DEMO, "steps": 200, "batch_size": 32},
    "video demo": {**DEMO, "steps": 150, "batch_size": 16, "pool_size": 128},
}
TRAINED = {
    "sd15": {"full": {"learning_rate": 1e-6}, "lora": {"learning_rate": 1e-4, "rank": 32}},
    "sdxl": {"full": {"learning_rate": 1e-7}, "lora": {"learning_rate": 1e-4, "rank": 32}},
    "sd3": {"full": {"learning_rate": 1e-6}, "lora": {"learning_rate": 1e-4, "rank": 32}},
    "cogvideox": {"full": {"learning_rate": 1e-6}, "lora": {"learning_rate": 1e-4, "rank": 64}},
    "wan": {"full": {"learning_rate": 1e-6}, "lora": {"learning_rate": 1e-4, "rank": 64}},
    "image demo": {"full": {"learning_rate": 5e-5}, "lora": {"learning_rate": 1e-3, "targets": "all"}},
    "video demo": {"full": {"learning_rate": 5e-5}, "lora": {"learning_rate": 1e-3}},
}
for name in ("qwen-image", "z-image", "flux2-klein"):  # all of rectified flow have the same
    OWN[name], TRAINED[name] = OWN["sd3"], TRAINED["sd3"]
MODELS = [(family, name) for family in (IMAGE, VIDEO) for name in family.known()]


def paper(family: AnyFamily, model: str, *overrides: str) -> Recipe:
    keys = dict.fromkeys(("prompts", "output", *family.recipe_options))
    return resolve(family, {**keys, "model": model, "config": "paper", "resume": False, "overrides": overrides})[1]


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize(("family", "model"), MODELS, ids=[f"{family.program} {name}" for family, name in MODELS])
def test_every_model_has_the_paper_s_recipe(family, model, train):
    kind = family.known()[model].family
    own = f"{family.program.removeprefix('selfnpo-')} demo" if model == "demo" else kind
    values = paper(family, model, f"train={train}").model_dump()
    wanted = {**ALL, **OWN[own], **TRAINED[own][train]}
    if (model, train) == ("cogvideox-2b", "lora"):
        wanted["mixed_precision"] = "fp16"  # as it is sampled
    assert {key: values[key] for key in wanted} == wanted


def test_the_paper_s_recipe_says_all_that_it_is_known_by():
    assert PAPER.keys() <= ALL.keys()
    missing = ALL.keys() - PAPER.keys()
    assert missing == {
        *("steps", "batch_size", "grad_accumulation", "sample_every"),
        *("chunk_frames", "mixed_precision", "gradient_checkpointing"),
    }


def test_single_keys_come_after_it():
    assert paper(IMAGE, "sd15", "loss=l2", "steps=3").model_dump()["loss"] == "l2"


def test_a_name_that_is_none_is_told_which_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--config papr: there is no such file, and recipes by name are paper"):
        name_or_file("papr")
    for file in ("papr", "paper"):
        (tmp_path / file).touch()
    for file in ("papr", "./paper", "recipes/none.yaml"):
        assert name_or_file(file) == (None, file)
    assert [name_or_file(name) for name in NAMES] == [(name, None) for name in NAMES]
    assert name_or_file(None) == (None, None)
