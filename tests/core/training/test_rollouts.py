"""Where training samples come from: the teacher's trajectories, and what an update leaves of them."""

import pytest
import torch
from tests.core.training.engines import engine, fixed_parts
from tests.core.training.toy import SCHEDULER, toy_recipe

from selfnpo_core import CLEAN, NULL, NoiseSchedule, trajectory
from selfnpo_core.guidance import guided_estimate
from selfnpo_core.testing import CountingDenoiser, GaussianWorld
from selfnpo_core.training.rollouts import Teacher, make_teacher
from selfnpo_core.training.sources import make_source


def test_the_pool_moves_one_ddim_step_an_update():
    with engine(batch_size=10, pool_size=20) as made:
        before = made.source.state_dict()
        (noised,) = fixed_parts(made)
        after, grid = made.source.state_dict(), made.backbone.schedule.grid(5)
        moved = after["index"] != before["index"]
        going = (moved & (before["index"] < 4)).nonzero()[:, 0]
        t = grid[before["index"][going]]
        estimate = made.denoisers.teacher(before["x"][going], t, torch.full_like(going, NULL))
        level = made.backbone.schedule.at(grid[before["index"][going] + 1], like=before["x"])
    assert 0 < len(going) < int(moved.sum()) == 10
    assert sorted(noised.look.t.tolist()) == sorted(grid[before["index"][moved]].tolist())
    assert torch.equal(after["index"][going], before["index"][going] + 1)
    assert (after["index"][moved & (before["index"] == 4)] == 0).all()
    expected = level.alpha * estimate.x0 + level.sigma * estimate.eps
    torch.testing.assert_close(after["x"][going], expected, rtol=0, atol=1e-5)


def test_truncated_rollouts_stop_where_a_plain_trajectory_is():
    with engine(batch_size=32, pool_size=32, rollout="truncated", truncation_steps=2, teacher_guidance=-2.0) as made:
        made.generator.manual_seed(3)
        drawn = made.source.draw()
        (look,) = made.source.looks(drawn, 32)
        schedule, grid = made.backbone.schedule, made.backbone.schedule.grid(5)
        walk = list(trajectory(made.denoisers.teacher, schedule, grid, drawn.x, drawn.prompt, -2.0))
    assert set(drawn.stop.tolist()) == {2, 3, 4}
    for row, stop in enumerate(drawn.stop.tolist()):
        torch.testing.assert_close(look.x_t[row], walk[stop].x_t[row], rtol=0, atol=1e-4)
        torch.testing.assert_close(look.weak.x0[row], walk[stop].estimate.x0[row], rtol=0, atol=1e-3)
        assert look.t[row] == grid[stop]


def test_looks_that_are_left_out_are_noticed():
    """Whoever stops early can neither put back what was not looked at nor draw again."""
    with engine(batch_size=5, pool_size=10) as made:
        before = made.source.state_dict()
        next(made.source.looks(made.source.draw(), 2))
        with pytest.raises(RuntimeError, match="2 trajectories were looked at"):
            made.source.put_back()
        with pytest.raises(RuntimeError, match="not put back"):
            made.source.draw()
        assert all(torch.equal(tensor, before[name]) for name, tensor in made.source.state_dict().items())
        made.source.load_state_dict(before)
        assert len(list(made.source.looks(made.source.draw(), 2))) == 3
        made.source.put_back()
        moved = made.source.state_dict()["index"] != before["index"]
    assert int(moved.sum()) == 5


def test_nothing_can_be_put_back_twice():
    with engine(batch_size=5, pool_size=10) as made:
        list(made.source.looks(made.source.draw(), 5))
        made.source.put_back()
        with pytest.raises(RuntimeError, match="use all looks"):
            made.source.put_back()


@pytest.mark.parametrize("weak", [-1.0, -2.0])
def test_a_strong_look_has_the_weak_estimate_of_a_look_alone(weak):
    """Both are made of the same two branches, asked in one forward."""
    with engine(teacher_guidance=weak) as made:
        denoise, x = made.denoisers.teacher, torch.randn(3, 4, 4, 4)
        t, prompt = torch.tensor([900, 500, 100]), torch.tensor([0, 1, 2])
        alone = Teacher(denoise=denoise, weak=weak).look(x, t, prompt)
        both = Teacher(denoise=denoise, weak=weak, strong=6.0).look(x, t, prompt)
        prompted = guided_estimate(denoise, x, t, prompt, 6.0)
    assert alone.strong is None
    torch.testing.assert_close(both.weak.x0, alone.weak.x0, rtol=0, atol=1e-4)
    torch.testing.assert_close(both.strong.x0, prompted.x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"objective": "dpo"}, {"rollout": "truncated"}], ids=["pool", "dpo", "truncated"]
)
@pytest.mark.parametrize("w", [-1.0, -2.0])
def test_advancing_by_the_target_s_own_guidance_changes_no_bit(changes, w):
    runs = []
    for advance in (None, w):
        with engine(teacher_guidance=w, advance_guidance=advance, **changes) as made:
            losses = [update.loss for update in made.updates()]
            runs.append((losses, dict(made.student.walks()["student"]), made.source.state_dict()))
    (losses, weights, source), (others, other_weights, other_source) = runs
    assert losses == others
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert all(torch.equal(source[name], other_source[name]) for name in source)


def gaussian_source(rollout: str, weak: float, advance: float | None, rows: int = 60, flow: bool = False, **more):
    """A source whose teacher is the best denoiser of a Gaussian world."""
    world = GaussianWorld.random((3,), num_prompts=2, dtype=torch.float32)
    schedule = NoiseSchedule.from_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler"} if flow else SCHEDULER)
    changes = {"rollout": rollout, "teacher_guidance": weak, "advance_guidance": advance, "truncation_steps": 2}
    changes |= more
    recipe = toy_recipe(batch_size=rows, pool_size=2 * rows, **changes)
    recipe = recipe.model_copy(update={"pool_size": rows})  # which a recipe may not say: all of it is drawn at once
    generator, denoiser = torch.Generator().manual_seed(3), CountingDenoiser(world.denoiser(schedule))
    made = make_source(
        recipe,
        make_teacher(recipe, denoiser),
        schedule,
        shape=(3,),
        num_prompts=2,
        generator=generator,
        device=torch.device("cpu"),
    )
    made.warm_up(rows, lambda: None)
    return made, denoiser, schedule


def test_a_pool_is_advanced_by_one_guidance_and_aimed_at_by_another_in_one_look():
    made, denoiser, schedule = gaussian_source("pool", weak=-1.0, advance=1.5)
    before, grid = made.state_dict(), schedule.grid(5)
    denoiser.rows.clear()
    (look,) = made.looks(made.draw(), 60)
    made.put_back()
    assert denoiser.rows == [120]
    target, step = (guided_estimate(denoiser.denoise, look.x_t, look.t, look.prompt, w) for w in (-1.0, 1.5))
    torch.testing.assert_close(look.weak.x0, target.x0)
    going = (before["index"] < 4).nonzero()[:, 0]
    assert len(going) == 48
    level = schedule.at(grid[before["index"][going] + 1], like=before["x"])
    there = {tuple(x.tolist()): row for row, x in enumerate(look.x_t)}
    rows = [there[tuple(x.tolist())] for x in before["x"][going]]
    for estimate, is_it in ((step, True), (target, False)):
        expected = level.alpha * estimate.x0[rows] + level.sigma * estimate.eps[rows]
        assert torch.allclose(made.state_dict()["x"][going], expected, atol=1e-5) is is_it


@pytest.mark.parametrize(("advance", "forwards"), [(1.5, 120), (0.0, 60), (None, 60)])
def test_endpoints_are_finished_samples_for_one_step_of_the_teacher(advance, forwards):
    made, denoiser, schedule = gaussian_source("pool", weak=-1.0, advance=advance, pool_target="endpoint")
    before = made.state_dict()
    denoiser.rows.clear()
    drawn = made.draw()
    (look,) = made.looks(drawn, 60)
    made.put_back()
    assert denoiser.rows == [forwards]
    assert torch.equal(look.weak.x0, look.x_t)
    level = schedule.at(look.t, like=look.x_t)
    assert torch.equal(level.alpha, torch.ones_like(level.alpha))
    assert not level.sigma.any()
    assert torch.equal(drawn.drawn_t, look.t)
    ends = {tuple(x.tolist()): int(prompt) for x, prompt in zip(before["end"], before["end_prompt"], strict=True)}
    assert [ends[tuple(x.tolist())] for x in look.x_t] == look.prompt.tolist()
    after = made.state_dict()
    moved = after["index"] != before["index"]
    assert moved.all()
    w, t = -1.0 if advance is None else advance, schedule.grid(5)[before["index"]]
    step = guided_estimate(denoiser.denoise, before["x"], t, before["prompt"], w)
    ended = before["index"] == 4
    torch.testing.assert_close(after["end"][ended], step.x0[ended])
    assert torch.equal(after["end"][~ended], before["end"][~ended])


def test_endpoints_have_the_distribution_of_the_data():
    """On a grid that is fine enough, from noise to the world's own samples."""
    made, _, _ = gaussian_source("pool", weak=-1.0, advance=0.0, rows=4000, pool_target="endpoint", grid_steps=100)
    world, state = GaussianWorld.random((3,), num_prompts=2, dtype=torch.float32), made.state_dict()
    for prompt in range(2):
        x0 = state["end"][state["end_prompt"] == prompt]
        torch.testing.assert_close(x0.mean(0), world.mean[prompt], rtol=0, atol=0.2)  # walks begin without signal
        torch.testing.assert_close(x0.T.cov(), world.covariance(prompt), rtol=0, atol=0.08)


def test_nothing_asks_the_network_of_less_noise_than_none():
    """A flow's timesteps begin at 0, where finished samples are; the student is asked above it."""
    made, _, schedule = gaussian_source("full", weak=0.0, advance=None, flow=True, rows=2000)
    drawn, generator = made.draw(), torch.Generator().manual_seed(0)
    assert (drawn.drawn_t == 0).all()
    for t in (drawn.drawn_t, torch.full((2000,), CLEAN)):
        s = schedule.draw_noisier(t, generator)
        assert (s > 0).all()
        assert float(s.mean()) == pytest.approx(500, abs=30)


def test_a_truncated_walk_ends_where_it_can_be_trained_on():
    made, _, _ = gaussian_source("truncated", weak=0.0, advance=None, flow=True, truncation_steps=0)
    drawn = made.draw()
    assert len(drawn.t) == 60
    assert set(drawn.stop.tolist()) == {1, 2, 3, 4}


def test_a_truncated_walk_goes_by_one_guidance_and_ends_under_another():
    made, denoiser, schedule = gaussian_source("truncated", weak=-1.0, advance=1.5)
    drawn = made.draw()
    (look,) = made.looks(drawn, 60)
    assert denoiser.rows[-1] == 60  # the last look needs no step
    grid = schedule.grid(5)
    made, _, _ = gaussian_source("truncated", weak=-1.0, advance=1.5)  # the same noise again
    drawn = made.draw()
    walk = list(trajectory(denoiser.denoise, schedule, grid, drawn.x, drawn.prompt, 1.5))
    for row, stop in enumerate(drawn.stop.tolist()):
        torch.testing.assert_close(look.x_t[row], walk[stop].x_t[row], rtol=0, atol=1e-5)
    target = guided_estimate(denoiser.denoise, look.x_t, look.t, look.prompt, -1.0)
    torch.testing.assert_close(look.weak.x0, target.x0)
