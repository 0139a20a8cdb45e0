"""The arms of a demo's tables: which weights each trains, and what it puts on the pipeline and takes off again."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from selfnpo_core.errors import InputError
from selfnpo_core.experiments import arms
from selfnpo_core.experiments.arms import TRAINED, TUNED_ARMS, make_arm, train_arm
from selfnpo_core.negative import relative_error
from selfnpo_core.training import resolve_recipe
from selfnpo_core.weights.npo_rule import NpoRule

OFFSET = {"weight": torch.tensor([[0.5, -1.0]])}


@pytest.fixture
def demo():
    network = nn.Linear(2, 1, bias=False)
    world = SimpleNamespace(denoiser=lambda pipe: pipe.denoiser)
    made = SimpleNamespace(world=world, kind="lora", presets=None, preference=None, pipe=SimpleNamespace())
    made.backbone = lambda: None
    made.pipe.denoiser = network
    return made


@pytest.fixture
def done(monkeypatch):
    """Weights that are trained already; what was put on a pipeline."""
    put = []

    @contextmanager
    def attached(pipe, what, **how):
        put.append((what, how))
        yield

    config = SimpleNamespace(recommended=SimpleNamespace(beta=0.75), recipe={"steps": 4})
    monkeypatch.setattr(arms, "train_arm", lambda demo, arm, seed, work: work / f"{arm}-s{seed}")
    monkeypatch.setattr(arms, "file_sha256", lambda path: f"sha of {path.name}")
    monkeypatch.setattr(arms, "load_npo", lambda run: SimpleNamespace(config=config, path=run))
    monkeypatch.setattr(arms, "offset_of", lambda npo: OFFSET)
    monkeypatch.setattr(arms, "attach_npo", attached)
    monkeypatch.setattr(arms, "NegativeDelta", SimpleNamespace(attach=attached))

    def effect(offset):  # another than the norm
        return abs(float(offset["weight"].sum()))

    monkeypatch.setattr(arms, "scale_to_effect", lambda _, offset, like, *, beta: beta * effect(like) / effect(offset))
    return put


def test_plain_guidance_needs_no_weights(demo, tmp_path):
    arm = make_arm(demo, "cfg", 1, tmp_path)
    assert (arm.name, arm.base, arm.against, arm.note) == ("cfg", True, (), {})
    for name in TUNED_ARMS:
        with pytest.raises(InputError, match="no preference-tuned variant"):
            make_arm(demo, name, 1, tmp_path)


@pytest.mark.parametrize("name", list(TRAINED))
def test_trained_weights_go_on_at_their_recommended_strength(name, demo, done, tmp_path):
    arm = make_arm(demo, name, 3, tmp_path)
    assert (arm.name, arm.against, arm.base) == (f"{name}-s3", ("cfg",), False)
    told = {"training_seed": 3, "recipe": {"steps": 4}, "npo_sha256": f"sha of {name}-s3"}
    assert arm.note == {**told, "beta": 0.75}
    with arm.attach(demo.pipe):
        assert done == [(tmp_path / f"{name}-s3", {"beta": 0.75})]
    assert make_arm(demo, name, 3, tmp_path, beta=0.25).note["beta"] == 0.25


@pytest.mark.parametrize("name", ["random", "shuffled"])
def test_another_offset_has_the_effect_of_the_weights_and_comes_from_the_seed(name, demo, done, tmp_path):
    for seed in (3, 3, 4, 5, 6):
        arm = make_arm(demo, name, seed, tmp_path)
        with arm.attach(demo.pipe):
            pass
        offset, how = done[-1]
        assert how == {"beta": arm.note["offset_scale"]}
        assert how["beta"] * abs(float(offset["weight"].sum())) == pytest.approx(0.75 * 0.5)
        assert offset["weight"].norm() == pytest.approx(OFFSET["weight"].norm())
    offsets = [what["weight"] for what, _ in done]
    assert torch.equal(offsets[0], offsets[1])
    assert any(not torch.equal(offsets[0], other) for other in offsets[2:])
    assert name == "shuffled" or relative_error(OFFSET, {"weight": offsets[0]}) > 0.01


def test_a_control_may_be_of_other_weights(demo, done, tmp_path):
    arm = make_arm(demo, "shuffled", 3, tmp_path, weights="ours", beta=1.0)
    assert (arm.note["weights"], arm.note["npo_sha256"]) == ("ours", "sha of ours-s3")
    assert "weights" not in make_arm(demo, "random", 3, tmp_path).note
    assert "weights" not in make_arm(demo, "ours", 3, tmp_path, weights="ours").note
    seeds = []
    for seed in range(8):  # two numbers have two orders
        with make_arm(demo, "shuffled", seed, tmp_path).attach(demo.pipe):
            seeds.append(tuple(done[-1][0]["weight"].flatten().tolist()))
    assert set(seeds) == {(0.5, -1.0), (-1.0, 0.5)}


@pytest.mark.parametrize("name", TRAINED)
def test_every_arms_recipe_is_valid(name):
    resolve_recipe({}, None, {"batch_size": 32, **TRAINED[name]})


def test_the_same_weights_by_other_rules(demo, done, tmp_path):
    neon = make_arm(demo, "neon", 3, tmp_path, strength=0.25)
    assert (neon.note["strength"], "beta" in neon.note) == (0.25, False)
    third = NpoRule(name="third", weight=0.5)
    ruled = make_arm(demo, "npo", 3, tmp_path, beta=1.0, rule=third, condition="null")
    assert (ruled.note["beta"], ruled.note["rule"], ruled.note["condition"]) == (1.0, "third, weight 0.5", "null")
    for arm in (neon, ruled):
        with arm.attach(demo.pipe):
            pass
    assert [how.get("rule") for _, how in done] == [NpoRule(name="neon", weight=0.25), third]


def test_weights_are_trained_once_with_the_arms_own_recipe(demo, tmp_path, monkeypatch):
    asked = []
    recipe = SimpleNamespace(steps=4)
    monkeypatch.setattr(arms, "resolve_recipe", lambda presets, file, changes: asked.append(changes) or recipe)
    monkeypatch.setattr(arms, "train", lambda *given, resume: asked.append(resume))
    monkeypatch.setattr(arms, "_finished", lambda output, recipe: output.is_dir())
    demo.backbone, demo.captions = (lambda: None), (list)
    assert train_arm(demo, "sims", 5, tmp_path) == tmp_path / "sims-s5"
    changes, resume = asked
    assert changes == {"model": "demo", "seed": 5, "train": "lora", **TRAINED["sims"]}
    assert resume is False
    (tmp_path / "sims-s5").mkdir()
    train_arm(demo, "sims", 5, tmp_path)
    assert len(asked) == 3  # a recipe, and no training
