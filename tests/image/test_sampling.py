"""Sampling: the stock pipeline's own pictures, whatever the batch; metadata; going on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_image import sampling
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.prompts import builtin_prompts, load_prompts

PROMPTS = ["a red fox", "a small boat", "two birds"]


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "model": str(folder),
        "model_config": None,
        "npo": None,
        "prompt": PROMPTS,
        "prompts": None,
        "guidance_scale": 4.0,
        "beta": None,
        "alpha": None,
        "preference": None,
        "negative_mode": None,
        "negative_rank": None,
        "other_base": False,
        "negative_prompt": None,
        "negative_condition": None,
        "npo_rule": None,
        "npo_weight": None,
        "npo_switch": None,
        "beta_knots": None,
        "height": None,
        "width": None,
        "seed": 7,
        "count": 1,
        "steps": 3,
        "batch_size": 3,
        "dtype": "fp32",
        "device": "cpu",
    }
    return {**given, **changes}


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("refused", [None, "blurry"])
def test_without_negative_weights_it_is_the_stock_pipeline(folder: Path, tmp_path: Path, refused: str | None) -> None:
    sampling.sample(sampling.plan(options(folder, negative_prompt=refused)), tmp_path)
    pipe = load_pipeline(find_base(str(folder)))
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        PROMPTS,
        negative_prompt=refused and [refused] * 3,
        guidance_scale=4.0,
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(7 + i) for i in range(3)],
    ).images
    for ours, stock in zip(pixels(tmp_path), wanted, strict=True):
        assert (ours == np.asarray(stock)).all()


def test_batches_do_not_matter(folder: Path, tmp_path: Path) -> None:
    for size in (1, 2, 3):
        job = sampling.plan(options(folder, batch_size=size))
        assert sampling.sample(job, tmp_path / str(size)) == 3
    for one, two, three in zip(*(pixels(tmp_path / str(size)) for size in (1, 2, 3)), strict=True):
        assert abs(one - three).max() <= 1
        assert abs(two - three).max() <= 1


def test_metadata_says_how_to_draw_it_again(folder: Path, tmp_path: Path) -> None:
    sampling.sample(sampling.plan(options(folder, prompt=["a"], count=2)), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [(r["file"], r["seed"], r["prompt"]) for r in records] == [
        ("00000-7.png", 7, "a"),
        ("00001-8.png", 8, "a"),
    ]
    record = records[0]
    assert (record["model"], record["guidance_scale"], record["steps"]) == (str(folder), 4.0, 3)
    assert (record["scheduler"], record["npo_sha256"], record["dtype"]) == ("DDIMScheduler", None, "fp32")


def test_it_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    job = sampling.plan(options(folder))
    sampling.sample(job, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    (tmp_path / "00001-8.png").unlink()
    assert sampling.sample(job, tmp_path) == 1
    assert sampling.sample(job, tmp_path) == 0
    assert before.keys() == {path.name for path in tmp_path.glob("*.png")}


def test_negative_weights_change_the_pictures_by_beta(folder: Path, finished_run: Path, tmp_path: Path) -> None:
    for beta in (None, 0.0, 0.5):
        job = sampling.plan(options(folder, npo=str(finished_run), beta=beta))
        assert job.negative is not None
        sampling.sample(job, tmp_path / str(beta))
    sampling.sample(sampling.plan(options(folder)), tmp_path / "plain")
    plain, full, zero, half = (pixels(tmp_path / name) for name in ("plain", "None", "0.0", "0.5"))
    assert all((a == b).all() for a, b in zip(plain, zero, strict=True))
    assert all((a != b).any() for a, b in zip(plain, full, strict=True))
    assert all((a != b).any() for a, b in zip(half, full, strict=True))
    record = json.loads((tmp_path / "None" / "metadata.jsonl").read_text().splitlines()[0])
    assert len(record["npo_sha256"]) == 64
    assert (record["beta"], record["alpha"], record["negative_condition"]) == (1.0, 1.0, "null")


def test_a_rule_is_obeyed_recorded_and_overridden(folder: Path, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    file = tmp_path / "run" / "npo" / "npo_config.json"
    config = json.loads(file.read_text())
    config["recommended"]["rule"] = {"name": "third", "weight": 0.5, "beta_knots": [[1.0, 0.5]]}
    file.write_text(json.dumps(config))
    asked: dict[str, dict[str, Any]] = {
        "third, weight 0.5, beta_knots 1:0.5": {},
        "third, weight 2, beta_knots 1:0.5": {"npo_weight": 2.0},
        "third, weight 0.5": {"beta_knots": "none"},
        "neon, weight 0.3": {"npo_rule": "neon", "npo_weight": 0.3},
        "two_branch": {"npo_rule": "two_branch"},
    }
    drawn = []
    for number, (words, changes) in enumerate(asked.items()):
        job = sampling.plan(options(folder, npo=str(tmp_path / "run"), prompt=["a"], **changes))
        sampling.sample(job, tmp_path / str(number))
        record = json.loads((tmp_path / str(number) / "metadata.jsonl").read_text())
        assert record["negative_rule"] == (None if words == "two_branch" else words)
        assert record["beta"] == (None if words.startswith("neon") else 1.0)
        drawn += pixels(tmp_path / str(number))
    assert not any((some == other).all() for k, some in enumerate(drawn) for other in drawn[:k])


def test_the_recommended_scale_is_the_default(folder: Path, finished_run: Path) -> None:
    config = json.loads((finished_run / "npo" / "npo_config.json").read_text())
    low, high = config["recommended"]["guidance_scale"]
    job = sampling.plan(options(folder, npo=str(finished_run), guidance_scale=None))
    assert job.settings.guidance_scale == (low + high) / 2
    assert sampling.plan(options(folder, guidance_scale=None)).settings.guidance_scale == 7.5


def test_builtin_prompts(tmp_path: Path) -> None:
    prompts = builtin_prompts()
    assert len(prompts) == len(set(prompts)) >= 200
    assert all(prompt == prompt.strip() and len(prompt) > 10 for prompt in prompts)
    assert load_prompts("builtin", "sd15") == prompts
    assert set(load_prompts("builtin", "demo")).isdisjoint(prompts)
    (tmp_path / "p.txt").write_text("mine\n")
    assert load_prompts(str(tmp_path / "p.txt"), "sd15") == ["mine"]


def test_a_share_of_a_preference_tuned_lora_on_the_negative_branch(
    folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    """The same LoRA as eta and delta: alpha = 0, beta = 1 and alpha = 1, beta = 0 both have it once on that branch."""
    eta = str(finished_run)
    drawn = {}
    for name, alpha, beta in (("one", 1.0, 1.0), ("less", 0.0, 1.0), ("same", 1.0, 0.0)):
        job = sampling.plan(options(folder, npo=eta, preference=eta, alpha=alpha, beta=beta))
        sampling.sample(job, tmp_path / name)
        drawn[name] = pixels(tmp_path / name)
    assert all((a != b).any() for a, b in zip(drawn["one"], drawn["less"], strict=True))
    for less, same in zip(drawn["less"], drawn["same"], strict=True):
        assert abs(less - same).max() <= 1


def test_weights_for_a_relative_of_their_base(folder: Path, finished_run: Path, tmp_path: Path) -> None:
    relative = load_pipeline(find_base(str(folder)))
    with torch.no_grad():
        for parameter in relative.unet.parameters():
            parameter.mul_(1.1)
    relative.save_pretrained(tmp_path / "relative")
    given = options(tmp_path / "relative", npo=str(finished_run))
    with pytest.raises(InputError, match="was made for"):
        sampling.sample(sampling.plan(given), tmp_path / "out")
    assert sampling.sample(sampling.plan({**given, "other_base": True}), tmp_path / "out") == 3
