"""Finished samples: which they are, where they are kept, how often each is used, and drawing that was stopped."""

import json
import os
import signal
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from tests.core.training.engines import Spy
from tests.core.training.test_resume import assert_same_run, metrics_of, run
from tests.core.training.test_updates import Windowed
from tests.core.training.toy import PROMPTS, SHAPE, ToyBackbone, toy_recipe

from selfnpo_core import CLEAN, NULL, InputError, NoiseSchedule, RunError
from selfnpo_core.ranks import Ranks
from selfnpo_core.system.signals import Interrupted
from selfnpo_core.training import samples as module
from selfnpo_core.training import stored_recipe, train
from selfnpo_core.training.samples import FinishedSamples, SamplePlan
from selfnpo_core.training.sources import SampleSource

CHANGES = {"rollout": "samples", "loss": "denoising", "samples": 20, "student_prompt_dropout": 0.5}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 6)


def plan_of(**changes) -> SamplePlan:
    return SamplePlan.of(ToyBackbone(), toy_recipe(**{**CHANGES, **changes}), len(PROMPTS))


def latents_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "latents").iterdir())}


def test_a_plan_is_the_recipe_s_or_the_family_s():
    plan = plan_of()
    assert (plan.guidance_scale, plan.steps, plan.forwards) == (2.0, 3, 6)
    other = plan_of(sample_guidance=1.0, sample_grid_steps=7)
    assert (other.guidance_scale, other.steps, other.forwards) == (1.0, 7, 7)
    assert [list(plan.rows(part)) for part in range(plan.parts)] == [
        [*range(6)], [*range(6, 12)], [*range(12, 18)], [18, 19]
    ]  # fmt: skip
    assert Counter(plan.prompts().tolist()) == dict.fromkeys(range(5), 4)
    assert not torch.equal(plan.prompts(), plan_of(seed=1).prompts())


def test_large_samples_have_small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 1000)
    assert plan_of().part_rows == 3


def test_samples_are_the_family_s_own_and_lie_in_the_run_folder(tmp_path):
    folder = run(tmp_path / "run", **CHANGES)
    said = json.loads((folder / "latents/samples.json").read_text())
    assert said["base_hash"] == ToyBackbone().base_hash
    assert (said["count"], said["guidance_scale"], said["steps"], said["shape"]) == (20, 2.0, 3, list(SHAPE))
    assert said["prompts_sha256"] == json.loads((folder / "run.json").read_text())["prompts_sha256"]
    plan, backbone = plan_of(), ToyBackbone()
    backbone.embed(PROMPTS)
    prompts = plan.prompts()
    seeds = [module.seed_for(0, module.DRAWING, row) for row in range(20)]
    assert len(set(seeds)) == 20
    wanted = backbone.draw_latents([PROMPTS[row] for row in prompts], seeds, guidance_scale=2.0, steps=3)
    x0, prompt = FinishedSamples(folder / "latents", plan).read(torch.tensor([19, 0, 7, 7]))
    torch.testing.assert_close(x0, wanted[[19, 0, 7, 7]], rtol=1e-5, atol=1e-5)
    assert torch.equal(prompt, prompts[[19, 0, 7, 7]])
    assert load_file(folder / "latents/part-00003.safetensors")["x0"].shape == (2, *SHAPE)


def test_an_update_asks_the_student_alone(tmp_path):
    spy = Spy()
    train(spy, toy_recipe(**{**CHANGES, "student_prompt_dropout": 1.0}), PROMPTS, tmp_path / "run", progress=False)
    drawing = 20 * 6
    assert (spy.rows(False), spy.rows(True)) == (drawing, 4 * 8)
    assert all(prompt == [NULL] * 8 for gradient, prompt in spy.seen if gradient)
    assert all((line["teacher_rows"], line["student_rows"]) == (0, 8) for line in metrics_of(tmp_path / "run"))


def source(tmp_path, ranks: Ranks, schedule: NoiseSchedule) -> SampleSource:
    """Whose sample k is k everywhere."""
    samples = FinishedSamples(tmp_path / "latents", plan_of())
    samples.begin({})
    for part in samples.missing():
        rows = torch.tensor(list(samples.plan.rows(part)), dtype=torch.float32)
        samples.write(part, rows[:, None, None, None].expand(-1, *SHAPE))
    return SampleSource(samples, schedule, torch.device("cpu"), seed=3, rows=8, ranks=ranks)


def update(made: SampleSource) -> list[int]:
    looks = list(made.looks(made.draw(), 3))
    made.put_back()
    return [int(x[0, 0, 0]) for look in looks for x in look.x_t]


def test_each_is_used_once_before_any_is_used_again_and_processes_share_the_rows(tmp_path):
    schedule = ToyBackbone().schedule
    alone = source(tmp_path, Ranks(0, 1), schedule)
    used = [update(alone) for _ in range(5)]
    flat = [row for rows in used for row in rows]
    assert sorted(flat[:20]) == sorted(flat[20:]) == list(range(20))
    assert flat[:20] != flat[20:] != list(range(20))
    pair = [source(tmp_path, Ranks(rank, 2), schedule) for rank in range(2)]
    assert [update(pair[0]) + update(pair[1]) for _ in range(5)] == used
    again = source(tmp_path, Ranks(0, 1), schedule)
    again.load_state_dict({"used": torch.tensor(24)})
    assert [update(again) for _ in range(2)] == used[3:]


@pytest.mark.parametrize(
    ("config", "clean"), [({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 0.0), (None, CLEAN)]
)
def test_samples_are_clean_on_every_schedule(tmp_path, config, clean):
    schedule = ToyBackbone().schedule if config is None else NoiseSchedule.from_scheduler(config)
    made = source(tmp_path, Ranks(0, 1), schedule)
    drawn = made.draw()
    (look,) = made.looks(drawn, 8)
    level = schedule.at(look.t, like=look.x_t)
    assert look.t.tolist() == drawn.drawn_t.tolist() == [clean] * 8
    assert (level.alpha == 1).all()
    assert (level.sigma == 0).all()
    assert torch.equal(look.weak.x0, look.x_t)
    s = schedule.draw_noisier(drawn.drawn_t, torch.Generator().manual_seed(0))
    assert (schedule.at(s, like=look.x_t).sigma > 0).all()


class Stopped(ToyBackbone):
    """Sends itself a signal, or fails, while it draws its second part."""

    def __init__(self, number: int | None):
        super().__init__()
        self.number = number

    def draw_latents(self, *args, **options):
        drawn = super().draw_latents(*args, **options)
        if self.parts_drawn == 2:
            if self.number is None:
                raise RunError("no more")
            os.kill(os.getpid(), self.number)
        return drawn


@pytest.mark.parametrize(("number", "kept"), [(signal.SIGTERM, 2), (signal.SIGINT, 2), (None, 1)])
def test_drawing_goes_on_where_it_was_stopped(tmp_path, number, kept):
    whole, parts = run(tmp_path / "whole", **CHANGES), tmp_path / "parts"
    with pytest.raises(RunError) as error:
        train(Stopped(number), toy_recipe(**CHANGES), PROMPTS, parts, progress=False)
    if number is not None:
        assert isinstance(error.value, Interrupted)
        assert error.value.exit_code == 128 + number
        assert "--resume" in str(error.value)
    assert len(list((parts / "latents").glob("part-*"))) == kept
    (parts / "latents/.part-00002.safetensors.0.partial").write_bytes(b"half a file")  # of one that was killed
    backbone = ToyBackbone()
    train(backbone, toy_recipe(**CHANGES), PROMPTS, parts, resume=True, progress=False)
    assert backbone.parts_drawn == 4 - kept
    assert latents_of(parts) == latents_of(whole)
    assert_same_run(whole, parts, 4)


def test_a_run_that_has_its_samples_draws_none(tmp_path):
    folder = run(tmp_path / "run", steps=2, **CHANGES)
    backbone = ToyBackbone()
    train(backbone, toy_recipe(**CHANGES), PROMPTS, folder, resume=True, progress=False)
    assert backbone.parts_drawn == 0
    assert_same_run(run(tmp_path / "whole", **CHANGES), folder, 4)


def test_as_many_are_drawn_as_the_updates_take_and_no_more_when_they_go_on(tmp_path):
    """Four updates of eight rows are four samples at ten uses, but an update has eight."""
    changes = {**CHANGES, "samples": None}
    folder = run(tmp_path / "run", steps=2, **changes)
    assert stored_recipe(folder).samples == 8
    before = latents_of(folder)
    assert json.loads(before["samples.json"])["count"] == 8
    run(folder, resume=True, **changes)
    assert latents_of(folder) == before
    assert_same_run(run(tmp_path / "whole", **changes), folder, 4)
    with pytest.raises(InputError, match="set uses to 11 or, in a new run, samples to 9"):
        run(folder, resume=True, steps=11, **changes)


def test_a_part_that_is_damaged_is_drawn_again(tmp_path):
    folder = run(tmp_path / "run", steps=2, **CHANGES)
    before, file = latents_of(folder), folder / "latents/part-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    run(folder, resume=True, **CHANGES)
    assert latents_of(folder) == before


def test_samples_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyBackbone, "draw_latents", lambda *_, **__: torch.full((6, *SHAPE), float("nan")))
    with pytest.raises(RunError, match="samples that are not finite: use mixed_precision bf16"):
        run(tmp_path / "run", **CHANGES)
    assert not list((tmp_path / "run/latents").glob("part-*"))


def test_windows_of_finished_clips(tmp_path):
    backbone = Windowed()
    recipe = toy_recipe(**CHANGES, chunk_frames=2)
    train(backbone, recipe, PROMPTS, tmp_path / "run", progress=False)
    assert {shape for _, shape in backbone.asked} == {(2, 4, 4)}


def test_samples_that_were_drawn_otherwise_are_not_used(tmp_path, monkeypatch):
    folder = run(tmp_path / "run", steps=2, **CHANGES)
    monkeypatch.setattr(ToyBackbone, "sampling", (3.0, 3))
    with pytest.raises(RunError, match="were drawn otherwise: begin a new run"):
        run(folder, resume=True, **CHANGES)


def test_progress_is_shown_while_drawing(tmp_path, capfd):
    train(ToyBackbone(), toy_recipe(**CHANGES), PROMPTS, tmp_path / "run")
    bar = capfd.readouterr().err
    assert "draw" in bar
    assert "20/20" in bar


def test_a_family_that_cannot_draw_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delattr(ToyBackbone, "draw_latents")
    with pytest.raises(InputError, match="toy/base cannot draw latents: use rollout pool"):
        run(tmp_path / "run", **CHANGES)
    assert not (tmp_path / "run").exists()
