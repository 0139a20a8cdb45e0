"""How finished samples are drawn: compiled or not, and what is said of it."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from tests.core.training.test_resume import assert_same_run
from tests.core.training.test_samples import CHANGES, latents_of
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core import RunError
from selfnpo_core.system import compiling, private
from selfnpo_core.training import drawing, samples, train
from selfnpo_core.training.samples import FinishedSamples, SamplePlan

COMPILED = {**CHANGES, "compile_drawing": True}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(samples, "PART_ROWS", 6)


@pytest.fixture
def eager(monkeypatch):
    """Stands for the compiler: takes the same way, and is quick. Gives the networks that it was asked for."""
    seen = []

    def compile_it(call, **_):
        def stand_in(*args, **options):
            seen.append(call)
            return call(*args, **options)

        return stand_in

    monkeypatch.setattr(torch, "compile", compile_it)
    return seen


def begun(folder, backbone=None, *, resume=False, **changes):
    backbone = backbone or ToyBackbone()
    train(backbone, toy_recipe(**{**COMPILED, **changes}), PROMPTS, folder, resume=resume, progress=False)
    return backbone


def said(folder):
    return json.loads((folder / "latents/samples.json").read_text())


def drawn(folder):
    x0, _ = FinishedSamples(folder / "latents", SamplePlan.of(ToyBackbone(), toy_recipe(**CHANGES), 5)).read(
        torch.arange(20)
    )
    return x0


def test_only_drawing_is_compiled(tmp_path, eager):
    backbone = begun(tmp_path / "run")
    assert len(eager) == 1 + 4 * 3  # the look whether there is a compiler, then parts of so many steps
    assert private.compiled_call(backbone.denoiser) is None
    assert said(tmp_path / "run")["compiled"] is True
    begun(tmp_path / "plain", compile_drawing=False)
    assert said(tmp_path / "plain").get("compiled") is None
    assert (
        latents_of(tmp_path / "plain")["part-00000.safetensors"]
        == latents_of(tmp_path / "run")["part-00000.safetensors"]
    )


def test_later_rounds_are_not_compiled(tmp_path, eager):
    begun(tmp_path / "run", rounds=2)
    assert len(eager) == 1 + 4 * 3


def test_samples_drawn_compiled_are_not_those_drawn_plainly(tmp_path, eager):
    cache = str(tmp_path / "cache")
    begun(tmp_path / "run", samples_cache=cache)
    assert begun(tmp_path / "plain", samples_cache=cache, compile_drawing=False).parts_drawn == 4
    assert begun(tmp_path / "again", samples_cache=cache).parts_drawn == 0


def test_without_a_compiler_it_says_so_and_draws(tmp_path, monkeypatch, caplog):
    def missing(*_, **__):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", missing)
    begun(tmp_path / "run")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == (
        "nothing can be compiled here (no C++ compiler was found): samples are drawn without (compile_drawing)"
    )
    assert said(tmp_path / "run").get("compiled") is None
    monkeypatch.undo()
    monkeypatch.setattr(samples, "PART_ROWS", 6)
    begun(tmp_path / "plain", compile_drawing=False)
    assert latents_of(tmp_path / "plain") == latents_of(tmp_path / "run")


def test_a_run_that_has_its_samples_needs_no_compiler(tmp_path, eager, monkeypatch):
    begun(tmp_path / "whole")
    begun(tmp_path / "run", steps=2)
    monkeypatch.setattr(torch, "compile", None)
    assert begun(tmp_path / "run", resume=True).parts_drawn == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run", 4)


def test_samples_are_not_drawn_in_two_ways(tmp_path, eager):
    begun(tmp_path / "run", steps=2)
    (tmp_path / "run/latents/part-00001.safetensors").unlink()
    with pytest.raises(RunError, match="were drawn otherwise"):
        begun(tmp_path / "run", resume=True, compile_drawing=False)


def test_after_the_first_part_it_tells_how_long_the_rest_takes(tmp_path, monkeypatch, caplog):
    clock = iter([100.0, 100.0 + 6 * 45])
    monkeypatch.setattr(drawing, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    caplog.set_level(logging.INFO)
    begun(tmp_path / "run", compile_drawing=False)
    assert "drawing takes about 10 min 30 s for the 14 samples that are left" in caplog.text
    caplog.clear()
    (tmp_path / "run/latents/part-00003.safetensors").unlink()
    monkeypatch.undo()
    monkeypatch.setattr(samples, "PART_ROWS", 6)
    begun(tmp_path / "run", resume=True, compile_drawing=False)
    assert "drawing takes" not in caplog.text


@pytest.mark.slow
def test_a_compiled_network_draws_the_same_samples(tmp_path, caplog):
    if compiling.why_not(torch.device("cpu")) is not None:
        pytest.skip("there is no compiler here")
    begun(tmp_path / "run")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    begun(tmp_path / "plain", compile_drawing=False)
    torch.testing.assert_close(drawn(tmp_path / "run"), drawn(tmp_path / "plain"), rtol=1e-4, atol=1e-4)
    assert said(tmp_path / "run")["compiled"]
