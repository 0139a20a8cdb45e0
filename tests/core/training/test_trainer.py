"""A whole run: its folder, its pictures, its trackers, and the ways in which it stops."""

import io
import json
import resource
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core import InputError, RunError
from selfnpo_core.models.embeddings import EmbeddingsCache
from selfnpo_core.system.disk import is_disk_full
from selfnpo_core.system.files import save_tensors, written_aside
from selfnpo_core.training import train, trainer
from selfnpo_core.training.checkpoint import newest_checkpoint
from selfnpo_core.training.run_folder import RunFolder
from selfnpo_core.training.spread import LIMITS
from selfnpo_core.training.trainer import _shared
from selfnpo_core.weights.npo_folder import load_npo


def test_metrics_have_a_line_an_update(tmp_path, capfd):
    train(ToyBackbone(), toy_recipe(), PROMPTS, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    keys = {"loss", "drift", "grad_norm", "lr", "seconds", "teacher_rows", "student_rows"}
    assert all(keys <= line.keys() for line in lines)
    assert all(line["loss"] > 0 and line["drift"] > 0 and line["grad_norm"] > 0 for line in lines)
    bar = capfd.readouterr().err
    assert "drift=" in bar
    assert "loss=" in bar


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_pictures_with_and_without_the_negative_weights(tmp_path, kind):
    backbone = ToyBackbone()
    recipe = toy_recipe(train=kind, steps=5, sample_every=2, sample_guidance_scales=[3.0, 7.0], trackers="tensorboard")
    train(backbone, recipe, PROMPTS, tmp_path / "run", progress=False)
    pictures = sorted((tmp_path / "run/samples").iterdir())
    assert [p.name for p in pictures] == ["step-000002.png", "step-000004.png", "step-000005.png"]
    assert Image.open(pictures[0]).size == (4 * 32, 14 + 4 * 32)
    kinds = [negative for _, negative in backbone.drawn]
    assert kinds.count(None) == 2  # once a scale: they never change
    assert len(kinds) == 2 + 3 * 2
    assert {negative for negative in kinds if negative} == {str if kind == "lora" else dict}
    events = EventAccumulator(str(tmp_path / "run/logs/selfnpo"))
    events.Reload()
    assert {"loss", "drift", "lr"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert events.Tags()["images"] == ["samples/0"] or events.Tags()["images"] == ["samples"]


class MovingToy(ToyBackbone):
    """Its samples are clips of three frames, each darker than the last."""

    fps = 8

    def draw_clips(self, prompts, seeds, **how):
        pictures = [np.asarray(picture.convert("RGB")) for picture in self.draw_samples(prompts, seeds, **how)]
        return [np.stack([pixels // share for share in (1, 2, 4)]) for pixels in pictures]

    def write_clip(self, path, frames):
        path.write_bytes(b"mp4")
        self.written = np.stack(list(frames))


def test_samples_that_move_are_kept_and_shown_as_clips(tmp_path, monkeypatch):
    """A strip of frames as ever, a file that plays, and both in the trackers."""
    backbone, shown = MovingToy(), []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Video=lambda path, format: (path, format)))
    wandb = SimpleNamespace(
        name="wandb",
        log=lambda values, step: shown.append((step, values)) if "clips" in values else None,
        log_images=lambda values, step: shown.append((step, values)),
        finish=lambda: None,
    )
    start = trainer.start_trackers
    monkeypatch.setattr(trainer, "start_trackers", lambda acc, recipe: start(acc, recipe) or acc.trackers.append(wandb))
    recipe = toy_recipe(steps=2, sample_every=2, sample_guidance_scales=[3.0], trackers="tensorboard")
    train(backbone, recipe, PROMPTS, tmp_path / "run", progress=False)
    png, mp4 = tmp_path / "run/samples/step-000002.png", tmp_path / "run/samples/step-000002.mp4"
    assert Image.open(png).size == (2 * 3 * 32, 14 + 4 * 32)
    assert mp4.read_bytes() == b"mp4"
    assert backbone.written.shape == (3, 14 + 4 * 32, 2 * 32, 3)
    assert np.array_equal(backbone.written[1, 14:], backbone.written[0, 14:] // 2)
    events = EventAccumulator(str(tmp_path / "run/logs/selfnpo"))
    events.Reload()
    (event,) = events.Images("clips")
    with Image.open(io.BytesIO(event.encoded_image_string)) as animation:
        assert (event.step, animation.format, animation.n_frames, animation.size) == (2, "GIF", 3, (64, 142))
        assert animation.info["duration"] == 120
    assert [step for step, _ in shown] == [2, 2]
    assert shown[0][1]["samples"][0].size == (2 * 3 * 32, 14 + 4 * 32)
    assert shown[1][1] == {"clips": (str(mp4), "mp4")}


def test_pictures_do_not_change_the_run(tmp_path):
    for name, every in (("with", 1), ("without", 0)):
        train(ToyBackbone(), toy_recipe(sample_every=every), PROMPTS, tmp_path / name, progress=False)
    one, other = (load_npo(tmp_path / name).tensors for name in ("with", "without"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_drift_beyond_the_limit_stops_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(RunError, match=r"over max_drift 0.25 at update 3.*lower learning_rate.*step-000002, is whole"):
        train(ToyBackbone(), toy_recipe(train="full", max_drift=0.25), PROMPTS, tmp_path / "run", progress=False)
    assert newest_checkpoint(tmp_path / "run/checkpoints").name == "step-000002"
    assert not (tmp_path / "run/checkpoints/step-000003").exists()


class Poisoned(ToyBackbone):
    count = 0

    def predict(self, x_t, t, prompt):
        self.count += torch.is_grad_enabled()
        return super().predict(x_t, t, prompt) * (float("nan") if self.count >= 4 else 1)


def test_nan_stops_and_the_run_can_be_resumed(tmp_path):
    with pytest.raises(RunError, match=r"loss nan.*at update 4"):
        train(Poisoned(), toy_recipe(max_skipped=0), PROMPTS, tmp_path / "run", progress=False)
    assert newest_checkpoint(tmp_path / "run/checkpoints").name == "step-000002"
    train(ToyBackbone(), toy_recipe(), PROMPTS, tmp_path / "run", resume=True, progress=False)
    assert newest_checkpoint(tmp_path / "run/checkpoints").name == "step-000004"


@pytest.mark.parametrize(
    ("changes", "prompts"), [({"targets": "nothing"}, PROMPTS), ({"engine": "zero3"}, PROMPTS), ({}, [])]
)
def test_bad_input_leaves_nothing_behind(tmp_path, changes, prompts):
    with pytest.raises(InputError):
        train(ToyBackbone(), toy_recipe(**changes), prompts, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_folder_and_the_network_are_free_after_a_failure(tmp_path):
    backbone = Poisoned()
    names = list(backbone.denoiser.state_dict())
    with pytest.raises(RunError):
        train(backbone, toy_recipe(max_skipped=0), PROMPTS, tmp_path / "run", progress=False)
    assert list(backbone.denoiser.state_dict()) == names
    with pytest.raises(RunError, match="nan"):  # not "in use"
        train(backbone, toy_recipe(max_skipped=0), PROMPTS, tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize(
    ("w", "advance", "warned"), [(-1.0, None, False), (-3000.0, None, True), (-3000.0, 0.0, False)]
)
def test_trajectories_that_are_no_samples_are_warned_of_once(tmp_path, caplog, monkeypatch, w, advance, warned):
    monkeypatch.setitem(LIMITS, "x_t", (0.1, 3.0))  # the toy's own are no diffusion model's
    recipe = toy_recipe(teacher_guidance=w, advance_guidance=advance, learning_rate=0.0)
    train(ToyBackbone(), recipe, PROMPTS, tmp_path / "run", progress=False)
    lines = [record.getMessage() for record in caplog.records if "the spread of a sample" in record.getMessage()]
    of_x_t = [line for line in lines if line.startswith("x_t at ")]
    assert bool(of_x_t) is warned
    assert len(set(lines)) == len(lines)


def test_a_warm_up_is_shown_and_kept_when_it_takes_long(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("selfnpo_core.training.trainer.WARM_UP_KEPT_SECONDS", -1)
    saved = []
    monkeypatch.setattr(
        "selfnpo_core.training.trainer.save_checkpoint",
        lambda root, state, *_, **__: saved.append((state.step, int(state.tensors["source"]["index"].sum()))),
    )
    train(ToyBackbone(), toy_recipe(steps=1), PROMPTS, tmp_path / "run")
    rows = 40 * 4 // 2
    assert f"{rows}/{rows}" in capfd.readouterr().err
    walked = [index for step, index in saved if step == 0]
    assert walked == sorted(set(walked))
    assert walked[0] == 0
    assert walked[-1] == rows


def test_runs_in_another_thread(tmp_path):
    done = []
    thread = threading.Thread(
        target=lambda: done.append(train(ToyBackbone(), toy_recipe(), PROMPTS, tmp_path / "run", progress=False))
    )
    thread.start()
    thread.join()
    assert done == [tmp_path / "run/npo"]


def test_an_io_error_while_writing_tensors_keeps_its_number(tmp_path):
    """The limit on a file's size makes the disk full for files of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error, written_aside(tmp_path / "x") as aside:
            save_tensors(aside / "a.safetensors", {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_disk_full(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("processes", "shared"), [(1, False), (2, True)])
def test_several_processes_without_a_cache_pass_embeddings_on_in_the_run_folder(tmp_path, processes, shared):
    accelerator, folder = SimpleNamespace(num_processes=processes), RunFolder(tmp_path)
    with _shared(None, folder, accelerator) as cache:
        assert (None if cache is None else cache.folder) == (tmp_path / ".embeddings" if shared else None)
        (tmp_path / ".embeddings").mkdir()
        (tmp_path / ".embeddings/row").write_text("x")
    assert (tmp_path / ".embeddings").exists() is not shared
    own = EmbeddingsCache(tmp_path / "own")
    own.folder.mkdir()
    with _shared(own, folder, accelerator) as cache:
        assert cache is own
    assert own.folder.exists()
