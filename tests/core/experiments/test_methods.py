"""The methods that are compared, and arms that are trained when they are asked for."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfnpo_core.decomposition import Decomposition
from selfnpo_core.errors import InputError
from selfnpo_core.experiments import methods
from selfnpo_core.experiments.arms import ALPHAS
from selfnpo_core.experiments.cells import Arm
from selfnpo_core.experiments.controls import CONTROLS, KEPT, EqualScale, RandomDirection, Recombined
from selfnpo_core.experiments.equal_cost import entries
from selfnpo_core.experiments.methods import METHODS, TrainedArms, available, make_control


def test_the_shipped_methods_have_names_of_their_own():
    names = [entry.name for entry in entries(list(METHODS), [20, 40], seed=1)]
    assert len(names) == len(set(names))


def test_what_a_method_is_without_its_weights_is_a_method():
    for name, method in METHODS.items():
        assert method.untrained is None or METHODS[method.untrained].untrained is None, name


def test_what_can_be_had_on_the_base():
    assert set(METHODS) - set(available(None)) == {"autoguidance", "tuned", "tuned_ours"}
    assert "autoguidance" in available(Path("earlier"))


def test_only_methods_with_weights_train(tmp_path, monkeypatch):
    asked, events = [], []

    def make_arm(demo, arm, seed, work, **settings):
        assert (tmp_path / "training.lock").is_file()
        asked.append((arm, seed, work, settings))

        @contextmanager
        def attach(pipe):
            events.append("in")
            yield
            events.append("out")

        return Arm(name=arm, attach=attach, note={"beta": settings.get("beta")})

    monkeypatch.setattr(methods, "make_arm", make_arm)
    arms = TrainedArms(demo=None, work=tmp_path, seed=3)
    assert METHODS["apg"].make(arms, METHODS["apg"].variants[0])[1] == {}
    assert asked == []
    attach, note = METHODS["ours"].make(arms, {"beta": 0.25})
    assert asked.pop() == ("ours", 3, tmp_path / "runs", {"beta": 0.25})
    assert note == {"beta": 0.25}
    with attach("pipe"):
        assert events == ["in"]
    assert METHODS["ours_apg"].make(arms, METHODS["ours_apg"].variants[0])[1] == {"beta": 1.0}
    assert asked.pop()[0] == "ours"
    METHODS["neon"].make(arms, {"strength": 0.5})
    assert asked.pop() == ("neon", 3, tmp_path / "runs", {"weights": "prompted", "strength": 0.5})
    for alpha in (0.0, 1.0):
        METHODS["tuned_ours"].make(arms, {"alpha": alpha, "beta": 1.0})
        arm, *_, settings = asked.pop()
        assert (ALPHAS[arm], settings) == (alpha, {"weights": "ours", "beta": 1.0})
    rules = {}
    for name in ("ours_prompt", "ours_third", "ours_switch", "ours_neon_both", "ours_interval_beta"):
        variant = METHODS[name].variants[0]
        METHODS[name].make(arms, variant)
        arm, _, _, use = asked.pop()
        assert (arm, use["beta"], use.get("condition")) == (
            "ours",
            variant["beta"],
            "prompt" if name == "ours_prompt" else None,
        )
        rules[name] = str(use["rule"])
    assert rules == {
        "ours_prompt": "two_branch",
        "ours_third": "third, weight 0.5",
        "ours_switch": "switch, switch 1",
        "ours_neon_both": "neon_both, weight 0.1",
        "ours_interval_beta": "two_branch, beta_knots 0.28:0,0.28:1,5.42:1,5.42:0",
    }
    METHODS["cfg"].make(arms, {})
    assert asked.pop() == ("cfg", 3, tmp_path / "runs", {})


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_are_put_around_the_methods_weights(control, tmp_path, monkeypatch):
    events = []

    @contextmanager
    def attached(pipe, what):
        events.append((pipe, what))
        yield

    def make_arm(demo, arm, seed, work, **settings):
        note = {"beta": settings["beta"]}
        return Arm(name=arm, attach=lambda pipe: attached(pipe, (arm, settings)), note=note)

    def measure(npo, backbone, prompts, **settings):
        assert settings == {"guidance_scale": 3.0, "beta": 0.5, "steps": 7}
        return None, SimpleNamespace(overall=Decomposition(size=1, kappa=0, k=0.25, **shares))

    shares = {"contrast_share": 0, "scale_share": 1, "rest_share": 0}
    monkeypatch.setattr(methods, "make_arm", make_arm)
    monkeypatch.setattr(methods, "train_arm", lambda demo, arm, seed, work: work / arm)
    monkeypatch.setattr(methods, "load_npo", lambda run: run)
    monkeypatch.setattr(methods, "measure", measure)
    monkeypatch.setattr(methods, "GuidanceRule", SimpleNamespace(attach=attached))
    demo = SimpleNamespace(captions=list, backbone=lambda: None)
    arms = TrainedArms(demo=demo, work=tmp_path, seed=3)
    attach, note = make_control(arms, "ours", {"beta": 0.5}, control, scale=3.0, steps=7)
    with attach("pipe"):
        pass
    assert {pipe for pipe, _ in events} == {"pipe"}
    put = [what for _, what in events]
    inner = ("ours", {"beta": 0.5})
    assert (
        put
        == {
            "equal_scale": [EqualScale(k=0.25)],
            "random_weights": [("random", {"weights": "ours", "beta": 0.5})],
            "shuffled_weights": [("shuffled", {"weights": "ours", "beta": 0.5})],
            "random_direction": [inner, RandomDirection()],
            **{name: [inner, Recombined(parts=parts)] for name, parts in KEPT.items()},
        }[control]
    )
    assert note == {"beta": 0.5, **({"k": 0.25, "effective_scale": 2.5} if control == "equal_scale" else {})}
    with pytest.raises(InputError, match="nothing to control for"):
        make_control(arms, "sims", {"beta": 0.5}, control, scale=3.0, steps=7)


def test_autoguidance_names_the_earlier_weights(tmp_path):
    with pytest.raises(InputError, match="wants an earlier state"):
        METHODS["autoguidance"].make(TrainedArms(demo=None, work=tmp_path, seed=0), {})
    (tmp_path / "earlier" / "unet").mkdir(parents=True)
    (tmp_path / "earlier" / "unet" / "a.safetensors").write_bytes(b"abc")
    arms = TrainedArms(demo=None, work=tmp_path, seed=0, earlier=tmp_path / "earlier")
    assert METHODS["autoguidance"].make(arms, {})[1]["earlier_sha256"]["unet"].startswith("ba7816bf")
