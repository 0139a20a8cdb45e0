"""The methods that are compared, and arms that are trained when they are asked for."""

from contextlib import contextmanager

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.experiments import methods
from selfnpo_core.experiments.cells import Arm
from selfnpo_core.experiments.equal_cost import entries
from selfnpo_core.experiments.methods import METHODS, TrainedArms


def test_the_shipped_methods_have_names_of_their_own():
    names = [entry.name for entry in entries(list(METHODS), [20, 40], seed=1)]
    assert len(names) == len(set(names))


def test_what_a_method_is_without_its_weights_is_a_method():
    for name, method in METHODS.items():
        assert method.untrained is None or METHODS[method.untrained].untrained is None, name


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
    attach, note = METHODS["npo"].make(arms, {"beta": 0.25})
    assert asked.pop() == ("npo", 3, tmp_path / "runs", {"beta": 0.25})
    assert note == {"beta": 0.25}
    with attach("pipe"):
        assert events == ["in"]
    assert METHODS["npo_apg"].make(arms, METHODS["npo_apg"].variants[0])[1] == {"beta": 0.5}
    assert asked.pop()[0] == "npo"
    rules = {}
    for name in ("npo_prompt", "npo_third", "npo_switch", "npo_neon_both", "npo_interval_beta"):
        variant = METHODS[name].variants[0]
        METHODS[name].make(arms, variant)
        arm, _, _, use = asked.pop()
        assert (arm, use["beta"], use.get("condition")) == (
            "npo",
            variant["beta"],
            "prompt" if name == "npo_prompt" else None,
        )
        rules[name] = str(use["rule"])
    assert rules == {
        "npo_prompt": "two_branch",
        "npo_third": "third, weight 0.5",
        "npo_switch": "switch, switch 1",
        "npo_neon_both": "neon_both, weight 0.1",
        "npo_interval_beta": "two_branch, beta_knots 0.28:0,0.28:1,5.42:1,5.42:0",
    }
    METHODS["cfg"].make(arms, {})
    assert asked.pop() == ("cfg", 3, tmp_path / "runs", {})


def test_autoguidance_names_the_earlier_weights(tmp_path):
    with pytest.raises(InputError, match="wants an earlier state"):
        METHODS["autoguidance"].make(TrainedArms(demo=None, work=tmp_path, seed=0), {})
    (tmp_path / "earlier" / "unet").mkdir(parents=True)
    (tmp_path / "earlier" / "unet" / "a.safetensors").write_bytes(b"abc")
    arms = TrainedArms(demo=None, work=tmp_path, seed=0, earlier=tmp_path / "earlier")
    assert METHODS["autoguidance"].make(arms, {})[1]["earlier_sha256"]["unet"].startswith("ba7816bf")
