"""A resumed run is the uninterrupted run, bit for bit; a run that is killed loses at most one interval."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core import InputError, RunError
from selfnpo_core.system.signals import Interrupted
from selfnpo_core.training import build_recipe, stored_recipe, streaming, train
from selfnpo_core.training.checkpoint import damage_of, newest_checkpoint

VARIANTS = {
    "lora": {"targets": "all"},
    "full": {"train": "full", "lr_schedule": "cosine", "warmup_steps": 1},
    "truncated": {"rollout": "truncated", "student_prompt_dropout": 0.5},
    "full rollout": {"rollout": "full"},
    "samples": {"rollout": "samples", "loss": "denoising", "samples": 20, "student_prompt_dropout": 0.5},
    "endpoint": {"pool_target": "endpoint", "loss": "denoising", "advance_guidance": 1.0, "grad_accumulation": 2},
    "reversal": {"objective": "gradient_reversal", "grad_accumulation": 2},
    "bf16": {"mixed_precision": "bf16", "objective": "dpo"},
}


def run(folder: Path, *, resume: bool = False, steps: int = 4, **changes) -> Path:
    recipe = toy_recipe(**{**changes, "steps": steps})
    train(ToyBackbone(), recipe, PROMPTS, folder, resume=resume, progress=False)
    return folder


def state_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    return {
        f"{path.stem}/{name}": tensor
        for path in checkpoint.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def metrics_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same_run(one: Path, other: Path, step: int) -> None:
    left, right = state_of(one, step), state_of(other, step)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different
    assert metrics_of(one) == metrics_of(other)
    states = [(f / "checkpoints" / f"step-{step:06d}" / "state.json").read_text() for f in (one, other)]
    assert states[0] == states[1]
    weights = [next((f / "npo").glob("*.safetensors")).read_bytes() for f in (one, other)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_updates_and_two_after_resuming_are_four(tmp_path, variant):
    changes = VARIANTS[variant]
    if "lr_schedule" in changes:  # the schedule looks at `steps`, so it must be the same: stop by a signal instead
        whole, parts = run(tmp_path / "whole", **changes), tmp_path / "parts"
        with pytest.raises(Interrupted):
            train(SelfStopping(2), toy_recipe(**changes), PROMPTS, parts, progress=False)
    else:
        whole, parts = run(tmp_path / "whole", **changes), run(tmp_path / "parts", steps=2, **changes)
    torch.rand(3)
    run(parts, resume=True, **changes)
    assert_same_run(whole, parts, 4)
    assert any(name.startswith("optimizer/") and name.endswith("exp_avg_sq") for name in state_of(whole, 4))
    if "rollout" not in changes:
        assert "source/x" in state_of(whole, 4)
        assert ("source/end" in state_of(whole, 4)) is ("pool_target" in changes)


class Drawing(ToyBackbone):
    """Its network uses torch's global generator, as dropout does."""

    def predict(self, x_t, t, prompt):
        return super().predict(x_t, t, prompt) + 0.1 * torch.randn_like(x_t)


def test_a_network_that_draws_by_itself_resumes_too_and_the_callers_generator_stays(tmp_path):
    before = torch.get_rng_state()
    for name, steps in (("whole", 4), ("parts", 2)):
        train(Drawing(), toy_recipe(steps=steps), PROMPTS, tmp_path / name, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    train(Drawing(), toy_recipe(), PROMPTS, tmp_path / "parts", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 4)
    losses = [line["loss"] for line in metrics_of(tmp_path / "whole")]
    assert losses != [line["loss"] for line in metrics_of(run(tmp_path / "plain"))]


def test_what_was_measured_last_is_known_after_resuming(tmp_path):
    changes = {"measure_every": 3, "checkpoint_every": 5}
    whole, parts = run(tmp_path / "whole", steps=8, **changes), run(tmp_path / "parts", steps=5, **changes)
    run(parts, resume=True, steps=8, **changes)
    assert metrics_of(whole) == metrics_of(parts)
    assert metrics_of(whole)[6]["drift"] == metrics_of(whole)[5]["drift"]


class StoppedWhileWarmingUp(ToyBackbone):
    """Sends a signal to its own process at the fifth forward."""

    forwards = 0

    def predict(self, x_t, t, prompt):
        self.forwards += 1
        if self.forwards == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().predict(x_t, t, prompt)


@pytest.mark.parametrize("variant", ["lora", "endpoint", "small start"])
def test_a_warm_up_that_was_stopped_goes_on_and_nothing_changes(tmp_path, variant):
    changes = {"pool_start": 16} if variant == "small start" else VARIANTS[variant]
    whole, parts = run(tmp_path / "whole", steps=6, **changes), tmp_path / "parts"
    with pytest.raises(Interrupted, match=r"while the rollout was prepared.*--resume"):
        train(StoppedWhileWarmingUp(), toy_recipe(**changes, steps=6), PROMPTS, parts, progress=False)
    assert newest_checkpoint(parts / "checkpoints").name == "step-000000"
    assert not (parts / "npo").exists()
    counted = StoppedWhileWarmingUp()
    counted.forwards = 5  # so that it only counts
    train(counted, toy_recipe(**changes, steps=6), PROMPTS, parts, resume=True, progress=False)
    assert_same_run(whole, parts, 6)
    assert (int(state_of(whole, 6)["source/filled"]) == 40) is (variant != "small start")


class SelfStopping(ToyBackbone):
    """Sends a signal to its own process while update `at` is being made."""

    def __init__(self, at: int, number: int = signal.SIGTERM):
        super().__init__()
        self.at, self.number, self.updates = at, number, 0

    def predict(self, x_t, t, prompt):
        if torch.is_grad_enabled():
            self.updates += 1
            if self.updates == self.at:
                os.kill(os.getpid(), self.number)
        return super().predict(x_t, t, prompt)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_update_saves_and_says_how_to_go_on(tmp_path, number, code):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"after update 3.*--resume") as error:
        train(SelfStopping(3, number), toy_recipe(), PROMPTS, tmp_path / "run", progress=False)
    assert error.value.exit_code == code
    assert signal.getsignal(number) is before
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-000003"
    run(tmp_path / "run", resume=True)
    assert_same_run(run(tmp_path / "whole"), tmp_path / "run", 4)


def test_a_signal_that_comes_while_the_processes_ask_one_another_is_not_lost(tmp_path, monkeypatch):
    from selfnpo_core.training import trainer

    asked, usual = [], signal.getsignal(signal.SIGTERM)

    def largest(value, device):
        if signal.getsignal(signal.SIGTERM) is not usual or asked:  # from where the run listens
            asked.append(value)
            if len(asked) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return value

    monkeypatch.setattr(trainer, "largest", largest)
    with pytest.raises(Interrupted) as error:
        run(tmp_path / "run")
    assert error.value.exit_code == 143
    assert asked[-1] == signal.SIGTERM
    assert len(asked) == 3


KILLED = """
import os, pathlib, signal, sys
from selfnpo_core.system import files
from selfnpo_core.training import streaming, trainer
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

def die():
    os.kill(os.getpid(), signal.SIGKILL)

opened, replace = streaming.HashedFile, files._replace_folder

def half_a_file(path, *rest):
    if "step-000004" in str(path) and path.stem == "teacher":
        path.write_bytes(b"half a file")
        die()
    return opened(path, *rest)

def never_rename(aside, target):
    if target.name == "step-000004":
        die()
    replace(aside, target)

for point in ("write", "rename"):
    child = os.fork()
    if not child:
        if point == "write":
            streaming.HashedFile = half_a_file
        else:
            files._replace_folder = never_rename
        trainer.train(ToyBackbone(), toy_recipe(steps=6), PROMPTS, pathlib.Path(sys.argv[1]) / point, progress=False)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (point, status)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Runs, in processes of their own, killed while they wrote the checkpoint of update 4."""
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=Path(__file__).parents[3], check=True)
    return folder


@pytest.mark.parametrize("point", ["write", "rename"])
def test_a_run_killed_while_saving_resumes_from_the_last_whole_checkpoint(killed, tmp_path, point):
    folder = killed / point
    assert [p.name for p in (folder / "checkpoints").glob(".*")] == [".step-000004.partial"]
    assert newest_checkpoint(folder / "checkpoints").name == "step-000002"
    assert len(metrics_of(folder)) == 4
    run(folder, resume=True, steps=6)
    assert_same_run(run(tmp_path / "whole", steps=6), folder, 6)
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "missing file", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage):
    folder = run(tmp_path / "run")
    newest = folder / "checkpoints" / "step-000004"
    victim = newest / "optimizer.safetensors"
    content = bytearray(victim.read_bytes())
    if damage == "flipped byte":
        content[-3] ^= 1
        victim.write_bytes(content)
    elif damage == "cut short":
        victim.write_bytes(content[:-10])
    elif damage == "missing file":
        victim.unlink()
    else:
        (newest / "manifest.json").unlink()
    assert damage_of(newest) is not None
    run(folder, resume=True, steps=6)
    assert "step-000004 is not whole" in caplog.text
    assert damage_of(newest) is None
    assert_same_run(run(tmp_path / "whole", steps=6), folder, 6)


def test_resume_before_the_first_checkpoint_starts_over(tmp_path):
    folder = run(tmp_path / "run")
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file():
            file.unlink()
    run(folder, resume=True)
    assert_same_run(run(tmp_path / "whole"), folder, 4)


def test_a_changed_recipe_cannot_resume_and_names_the_keys(tmp_path):
    folder = run(tmp_path / "run", steps=2)
    kept = state_of(folder, 2)
    with pytest.raises(InputError, match=r"learning_rate \(0.01 → 0.02\), objective \(tdft → dpo\)"):
        run(folder, resume=True, learning_rate=0.02, objective="dpo")
    with pytest.raises(InputError, match="the prompts"):
        train(ToyBackbone(), toy_recipe(), PROMPTS[1:], folder, resume=True, progress=False)
    with pytest.raises(InputError, match="the base model"):
        train(ToyBackbone(seed=5), toy_recipe(), PROMPTS, folder, resume=True, progress=False)
    assert stored_recipe(folder) == build_recipe(toy_recipe(steps=2).model_dump())
    assert all(torch.equal(kept[name], tensor) for name, tensor in state_of(folder, 2).items())
    run(folder, resume=True, steps=3, checkpoint_every=1, sample_every=1, keep_last=5)
    assert stored_recipe(folder).steps == 3


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    folder = run(tmp_path / "run", steps=5, checkpoint_every=1, keep_last=2)
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["step-000004", "step-000005"]
    folder = run(tmp_path / "all", steps=3, checkpoint_every=1, keep_last=0)
    assert len(list((folder / "checkpoints").iterdir())) == 3


def test_nothing_is_pickled(tmp_path):
    folder = run(tmp_path / "run")
    suffixes = {path.suffix for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    class FullDisk(streaming.HashedFile):
        """As much as went in stays."""

        def add(self, tensor):
            path = Path(self._file.name)
            if "step-000004" in str(path) and path.stem == "optimizer":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            super().add(tensor)

    monkeypatch.setattr(streaming, "HashedFile", FullDisk)
    with pytest.raises(RunError, match=r"disk is full.*free some space.*--resume.*step-000002, is whole"):
        run(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.undo()
    run(tmp_path / "run", resume=True)
    assert_same_run(run(tmp_path / "whole"), tmp_path / "run", 4)
