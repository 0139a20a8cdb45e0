"""The shipped video model, and the demo on it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfnpo_core.adapters import NegativeAdapters
from selfnpo_core.commands.demo import tell
from selfnpo_core.experiments.arms import make_arm, train_arm
from selfnpo_core.experiments.measure import judge, sample
from selfnpo_core.worlds.world import Task
from selfnpo_video.demo import assets, moving, world
from selfnpo_video.demo.build import pack
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_pipeline
from selfnpo_video.recipes import DEMO
from selfnpo_video.video_files import read_video

SMALL = {"steps": 2, "batch_size": 4, "pool_size": 8, "grid_steps": 5, "rank": 4, "learning_rate": 1e-3}
LORA = moving.demo(presets={"lora": SMALL}, kind="lora")
WORLD = LORA.world


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(find_base("demo"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A LoRA run of two updates: too short to help, long enough to act."""
    return train_arm(LORA, "npo", 0, tmp_path_factory.mktemp("work"))


def drawn(pipe, task):
    return sample(WORLD, pipe, task, guidance_scale=3.0, steps=3).data


def test_what_ships_is_small_safe_and_labelled():
    files = [path for path in assets.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20 * 2**20
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert "toy" in (assets.FOLDER / "model" / "README.md").read_text(encoding="utf-8")
    card = json.loads((assets.FOLDER / "card.json").read_text(encoding="utf-8"))
    good = (
        card["best joint prompt accuracy"] >= pack.MIN_ACCURACY
        and card["autoencoder's reconstruction FVD"] <= pack.MAX_RECONSTRUCTION_FVD
    )
    assert good != bool(card["interim"]), "a model that is not good enough must say so, and no other"


@pytest.mark.slow
def test_the_judges_read_real_clips():
    clips, labels = world.draw_world(256, torch.Generator().manual_seed(123))
    scores = judge(WORLD, clips, labels)
    assert scores.accurate.float().mean() > 0.95
    wrong = judge(WORLD, clips, labels.roll(1, 0))
    assert (scores.preference > wrong.preference).float().mean() > 0.8


def test_a_zeroed_lora_reproduces_plain_guidance_exactly(pipe, run, tmp_path):
    zeroed = tmp_path / "npo"
    zeroed.mkdir()
    file = run / "npo" / "pytorch_lora_weights.safetensors"
    state = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in load_file(file).items()}
    save_file(state, zeroed / file.name)
    task = Task.draw(WORLD, 2, 5)
    base = drawn(pipe, task)
    pipe.load_lora_weights(zeroed, adapter_name="zero")
    with NegativeAdapters.attach(pipe, {"zero": 1.0}):
        same = drawn(pipe, task)
    pipe.unload_lora_weights()
    assert torch.equal(base, same)
    with make_arm(LORA, "npo", 0, run.parent, beta=30.0).attach(pipe):
        assert not torch.equal(base, drawn(pipe, task))
    assert torch.equal(base, drawn(pipe, task))


def test_every_arm_samples_and_leaves_the_pipeline_as_it_was(pipe, run):
    task = Task.draw(WORLD, 2, 6)
    base = drawn(pipe, task)
    for name in ("random", "neon"):
        with make_arm(LORA, name, 0, run.parent).attach(pipe):
            assert not torch.equal(base, drawn(pipe, task)), name
        assert torch.equal(base, drawn(pipe, task)), name


def test_the_demo_tells_its_whole_story(tmp_path, capsys):
    """All of the command, with few samples and a short training by its own recipe."""
    short = {**DEMO["lora"], "steps": 4, "batch_size": 8, "samples": 16, "sample_grid_steps": 2}
    tell(moving.demo(presets={"lora": short}), output=tmp_path / "demo", full=False, seed=0, samples=16)
    cells = json.loads((tmp_path / "demo" / "demo.json").read_text())["cells"]
    wanted = [(arm, scale) for scale in (2.0, 3.0, 5.0) for arm in ("cfg", "npo-s0")]
    assert [(cell["arm"], cell["scale"]) for cell in cells] == wanted
    assert all(cell["fvd"][0] > 0 and 0 < cell["accuracy"][0] <= 1 for cell in cells)
    assert "At plain guidance's best scale" in capsys.readouterr().out
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("<video") == len(list((tmp_path / "demo" / "clips").glob("*.mp4"))) == moving.SHOWN
    assert (tmp_path / "demo" / "curves.png").is_file()
    assert len(read_video(tmp_path / "demo" / "clips.webp")[0]) == world.FRAMES
