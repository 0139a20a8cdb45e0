"""The shipped model, and the demo's experiments on it."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfnpo_core.commands.demo import tell
from selfnpo_core.experiments import arms
from selfnpo_core.experiments.arms import make_arm, train_arm
from selfnpo_core.experiments.measure import distance, judge, sample
from selfnpo_core.negative import neon, norm
from selfnpo_core.weights.npo_folder import load_npo
from selfnpo_core.weights.offsets import offset_of
from selfnpo_core.worlds.world import Task
from selfnpo_image import shipped
from selfnpo_image.demo import pictures, world
from selfnpo_image.demo.build import pack
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.recipes import DEMO


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(find_base("demo"))


SMALL = {"steps": 2, "batch_size": 4, "pool_size": 25, "grid_steps": 5, "rank": 4, "learning_rate": 1e-3}
LORA = pictures.demo(presets={"lora": SMALL}, kind="lora")
WORLD = LORA.world


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A LoRA run of two updates: too short to help, long enough to act."""
    return train_arm(LORA, "npo", 0, tmp_path_factory.mktemp("work"))


def drawn(pipe, task, steps):
    return sample(WORLD, pipe, task, guidance_scale=3.0, steps=steps).data


def test_what_ships_is_small_safe_and_labelled():
    files = [path for path in shipped.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert "toy" in (shipped.FOLDER / "model" / "README.md").read_text(encoding="utf-8")
    card = json.loads((shipped.FOLDER / "card.json").read_text(encoding="utf-8"))
    good = (
        card["best joint prompt accuracy"] >= pack.MIN_JOINT_ACCURACY
        and card["autoencoder's reconstruction FID"] <= pack.MAX_RECONSTRUCTION_FID
    )
    assert good != bool(card["interim"]), "a model that is not good enough must say so, and no other"


def test_the_oracle_reads_real_pictures():
    pictures, labels = world.draw_world(2000, torch.Generator().manual_seed(123))
    scores = judge(WORLD, pictures, labels)
    assert scores.accurate.float().mean() > 0.97
    variance = WORLD.judges.reference.covariance.trace()
    assert distance(WORLD, scores.features) < 0.01 * variance  # equal distributions: the bias of 2,000 pictures is left
    wrong = judge(WORLD, pictures, labels.roll(1, 0))
    assert (scores.preference > wrong.preference).float().mean() > 0.8


def test_a_zeroed_lora_reproduces_plain_guidance_exactly(pipe, run, tmp_path):
    zeroed = tmp_path / "npo"
    zeroed.mkdir()
    file = run / "npo" / "pytorch_lora_weights.safetensors"
    state = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in load_file(file).items()}
    save_file(state, zeroed / file.name)
    task = Task.draw(WORLD, 4, 5)
    base = drawn(pipe, task, 3)
    from selfnpo_core.adapters import NegativeAdapters

    pipe.load_lora_weights(zeroed, adapter_name="zero")
    with NegativeAdapters.attach(pipe, {"zero": 1.0}):
        same = drawn(pipe, task, 3)
    pipe.unload_lora_weights()
    assert torch.equal(base, same)
    with make_arm(LORA, "npo", 0, run.parent, beta=30.0).attach(pipe):
        other = drawn(pipe, task, 3)
    assert not torch.equal(base, other)
    assert torch.equal(base, drawn(pipe, task, 3))


def test_an_arm_is_trained_once(run):
    stamp = (run / "metrics.jsonl").stat().st_mtime_ns
    assert train_arm(LORA, "npo", 0, run.parent) == run
    assert (run / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_every_arm_samples_and_leaves_the_pipeline_as_it_was(pipe, run):
    task = Task.draw(WORLD, 2, 6)
    base = drawn(pipe, task, 2)
    for name in ("random", "neon"):
        with make_arm(LORA, name, 0, run.parent).attach(pipe):
            drawn(pipe, task, 2)
        assert torch.equal(base, drawn(pipe, task, 2)), name


def test_the_offset_is_the_loras_product(pipe, run):
    offset = offset_of(load_npo(run))
    state = load_file(run / "npo" / "pytorch_lora_weights.safetensors")
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = (state[f"unet.{name}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(offset[f"{name}.weight"], b @ a)  # alpha = rank
    assert norm(offset) > 0
    assert set(offset) <= {key.replace(".base_layer", "") for key, _ in pipe.unet.named_parameters()}


def test_the_offset_of_full_weights_is_their_difference(pipe, tmp_path):
    small = {"steps": 1, "batch_size": 2, "pool_size": 4, "grid_steps": 3, "learning_rate": 1e-2, "max_drift": 10.0}
    demo = pictures.demo(presets={"full": small}, kind="full")
    run = train_arm(demo, "npo", 1, tmp_path)
    offset, before = offset_of(load_npo(run)), copy.deepcopy(pipe.unet.state_dict())
    assert set(offset) == set(dict(pipe.unet.named_parameters()))
    task = Task.draw(WORLD, 2, 7)
    with make_arm(demo, "neon", 1, tmp_path).attach(pipe):
        away = drawn(pipe, task, 2)
    pipe.unet.load_state_dict(neon(before, offset, arms.NEON_STRENGTH))
    expected = drawn(pipe, task, 2)
    pipe.unet.load_state_dict(before)
    assert (away.float() - expected.float()).abs().max() <= 1  # of 255, by the order of sums
    assert not torch.equal(away, drawn(pipe, task, 2))
    random = make_arm(demo, "random", 1, tmp_path)
    assert random.note["beta"] == 1.0


def test_the_demo_tells_its_whole_story(tmp_path, capsys):
    """All of the command, with few samples and a short training by its own recipe."""
    short = {**DEMO["lora"], "steps": 4, "batch_size": 8, "samples": 16, "sample_grid_steps": 2}
    tell(pictures.demo(presets={"lora": short}), output=tmp_path / "demo", full=False, seed=0, samples=16)
    cells = json.loads((tmp_path / "demo" / "demo.json").read_text())["cells"]
    wanted = [(arm, scale) for scale in (2.0, 2.5, 3.0) for arm in ("cfg", "npo-s0")]
    assert [(cell["arm"], cell["scale"]) for cell in cells] == wanted
    assert all(cell["fid"][0] > 0 and 0 < cell["accuracy"][0] <= 1 for cell in cells)
    assert "At plain guidance's best scale" in capsys.readouterr().out
    assert (tmp_path / "demo" / "pictures.png").is_file()
    assert (tmp_path / "demo" / "curves.png").is_file()
