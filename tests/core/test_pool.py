"""The trajectory pool: what it holds, in which measure, and that nothing about it is left to chance."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from selfnpo_core import CLEAN, InputError, NoiseSchedule, TrajectoryPool, ddim_step, full_simulation, trajectory
from selfnpo_core.guidance import guided_estimate
from selfnpo_core.ranks import Ranks
from selfnpo_core.testing import GaussianWorld

GRID = torch.tensor([900, 700, 500, 300, 100])


def make_pool(size: int = 23, *, seed: int = 0, **options) -> tuple[TrajectoryPool, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    return TrajectoryPool(size, (2, 3), GRID, 7, g, **options), g


def count_up(x_t: Tensor, t: Tensor, t_next: Tensor, prompt: Tensor) -> Tensor:
    """Leaves a mark: how many steps a sample has made can be read off it."""
    return x_t + 1000


def indices(pool: TrajectoryPool) -> Tensor:
    return pool.state_dict()["index"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("size", [25, 23, 3])
def test_stagger_makes_all_grid_points_equally_present(size: int) -> None:
    pool, _ = make_pool(size)
    assert indices(pool).tolist() == [0] * size
    rows: list[int] = []

    def advance(x_t: Tensor, t: Tensor, t_next: Tensor, prompt: Tensor) -> Tensor:
        assert len(x_t) > 0, "a network is not asked for nothing: some cannot answer"
        rows.append(len(x_t))
        assert torch.equal(t - t_next, torch.full_like(t, 200))
        return count_up(x_t, t, t_next, prompt)

    pool.stagger(advance, batch_size=4)
    counts = indices(pool).bincount(minlength=5)
    assert counts.max() - counts.min() <= 1
    assert max(rows) <= 4
    assert sum(rows) == indices(pool).sum()
    steps_made = (pool.state_dict()["x"] / 1000).round()
    assert torch.equal(steps_made, indices(pool)[:, None, None].expand(-1, 2, 3).float())


def test_stagger_does_not_order_the_pool() -> None:
    pool, _ = make_pool(500)
    pool.stagger(count_up)
    index = indices(pool).double()
    assert abs(torch.corrcoef(torch.stack([index, torch.arange(500.0)]))[0, 1]) < 0.15
    assert not torch.equal(index, torch.arange(500) % 5)


def test_grid_points_stay_equally_present() -> None:
    pool, _ = make_pool(200)
    pool.stagger(count_up)
    total = torch.zeros(5)
    for _ in range(500):
        batch = pool.draw(20)
        pool.put_back(batch, batch.x_t)
        total += batch.index.bincount(minlength=5)
    assert ((total / total.sum() - 0.2).abs() < 0.02).all()


def test_draw_gives_different_rows_as_they_are_stored() -> None:
    pool, _ = make_pool(23)
    pool.stagger(count_up)
    state = pool.state_dict()
    batch = pool.draw(23)
    assert sorted(batch.rows.tolist()) == list(range(23))
    assert batch.rows.tolist() != list(range(23))
    for name, value in (("x", batch.x_t), ("index", batch.index), ("prompt", batch.prompt)):
        assert torch.equal(value, state[name][batch.rows])
    assert torch.equal(batch.t, GRID[batch.index])
    following = [*GRID.tolist()[1:], int(CLEAN)]
    assert batch.t_next.tolist() == [following[i] for i in batch.index.tolist()]


def test_put_back_advances_the_drawn_and_leaves_the_others() -> None:
    pool, _ = make_pool(20)
    pool.stagger(count_up)
    before = pool.state_dict()
    batch = pool.draw(8)
    pool.put_back(batch, torch.full_like(batch.x_t, 0.5))
    after = pool.state_dict()
    others = torch.ones(20, dtype=torch.bool).index_fill(0, batch.rows, False)
    for name in ("x", "index", "prompt"):
        assert torch.equal(after[name][others], before[name][others])
    going_on = batch.rows[batch.index < 4]
    assert len(going_on) > 0
    assert (after["x"][going_on] == 0.5).all()
    assert torch.equal(after["index"][going_on], before["index"][going_on] + 1)
    assert torch.equal(after["prompt"][going_on], before["prompt"][going_on])


def test_finished_trajectories_begin_again_with_fresh_noise_and_prompts() -> None:
    pool, _ = make_pool(3000)
    start = pool.state_dict()
    for _ in range(5):
        batch = pool.draw(3000)
        pool.put_back(batch, count_up(batch.x_t, batch.t, batch.t_next, batch.prompt))
    again = pool.state_dict()
    assert (again["index"] == 0).all()
    assert not (again["x"] == start["x"]).any()
    assert abs(torch.corrcoef(torch.stack([again["x"].flatten(), start["x"].flatten()]))[0, 1]) < 0.03
    for x in (start["x"], again["x"]):
        assert abs(x.mean()) < 0.03
        assert abs(x.std() - 1) < 0.03
    for prompt in (start["prompt"], again["prompt"]):
        assert ((prompt.bincount(minlength=7) / 3000 - 1 / 7).abs() < 0.03).all()
    assert 0.7 < (again["prompt"] != start["prompt"]).float().mean() < 0.95  # 6/7 of them


def test_the_pool_holds_the_trajectories_of_its_denoiser() -> None:
    schedule = NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler())
    denoise = GaussianWorld.random((2, 3), num_prompts=7).denoiser(schedule)
    pool = TrajectoryPool(20, (2, 3), GRID, 7, torch.Generator().manual_seed(0), dtype=torch.float64)
    start = pool.state_dict()

    def advance(x_t: Tensor, t: Tensor, t_next: Tensor, prompt: Tensor) -> Tensor:
        return ddim_step(guided_estimate(denoise, x_t, t, prompt, -3.0), schedule.at(t_next, like=x_t))

    pool.stagger(advance, batch_size=6)
    staggered = pool.state_dict()
    for place in trajectory(denoise, schedule, GRID, start["x"], start["prompt"], -3.0):
        here = staggered["index"] == place.index
        torch.testing.assert_close(staggered["x"][here], place.x_t[here])


def test_ends_are_where_whole_walks_end() -> None:
    schedule = NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler())
    denoise = GaussianWorld.random((2, 3), num_prompts=7).denoiser(schedule)
    g = torch.Generator().manual_seed(0)
    pool = TrajectoryPool(20, (2, 3), GRID, 7, g, dtype=torch.float64, keep_ends=True)
    start = pool.state_dict()

    def advance(x_t: Tensor, t: Tensor, t_next: Tensor, prompt: Tensor) -> Tensor:
        return ddim_step(guided_estimate(denoise, x_t, t, prompt, 1.5), schedule.at(t_next, like=x_t))

    pool.finish(advance, batch_size=6)
    first = pool.state_dict()
    torch.testing.assert_close(
        first["end"], full_simulation(denoise, schedule, GRID, start["x"], start["prompt"], 1.5), atol=1e-6, rtol=1e-6
    )
    assert torch.equal(first["end_prompt"], start["prompt"])
    assert (first["index"] == 0).all()
    assert not (first["x"] == start["x"]).any()
    for turn in range(5):
        assert torch.equal(pool.state_dict()["end"], first["end"]), f"no walk has ended after {turn} steps"
        batch = pool.draw()
        pool.put_back(batch, advance(batch.x_t, batch.t, batch.t_next, batch.prompt))
    second = pool.state_dict()
    torch.testing.assert_close(
        second["end"], full_simulation(denoise, schedule, GRID, first["x"], first["prompt"], 1.5), atol=1e-6, rtol=1e-6
    )
    assert torch.equal(second["end_prompt"], first["prompt"])


def steps_made(pool: TrajectoryPool) -> list[int]:
    """What `count_up` has left."""
    return (pool.state_dict()["x"] / 1000).round()[:, 0, 0].int().tolist()


def test_a_pool_that_begins_later_holds_nothing_at_the_beginning() -> None:
    pool, _ = make_pool(60, rows=6, first=1)
    pool.stagger(count_up)
    assert indices(pool).bincount(minlength=5).tolist() == [0, 15, 15, 15, 15]
    assert steps_made(pool) == indices(pool).tolist()
    total, restarted = torch.zeros(5), 0
    for _ in range(400):
        batch = pool.draw()
        pool.put_back(batch, count_up(batch.x_t, batch.t, batch.t_next, batch.prompt))
        restarted += int((indices(pool) == 0).sum())
        pool.walk_on(count_up)
        assert steps_made(pool) == indices(pool).tolist()
        total += batch.index.bincount(minlength=5)
    assert restarted > 0
    assert total[0] == 0
    assert ((total[1:] / total.sum() - 0.25).abs() < 0.03).all()


def test_a_pool_that_begins_small_is_filled_while_it_is_drawn_from() -> None:
    pool, _ = make_pool(40, rows=6)
    asked: list[int] = []

    def advance(x_t: Tensor, t: Tensor, t_next: Tensor, prompt: Tensor) -> Tensor:
        asked.append(len(x_t))
        return count_up(x_t, t, t_next, prompt)

    pool.stagger(advance, count=12)
    assert sum(asked) == indices(pool)[:12].sum()
    assert max(steps_made(pool)[12:]) == 0
    assert indices(pool)[:12].bincount(minlength=5).max() <= 3
    drawn: list[int] = []
    filled = []
    for _ in range(150):
        batch = pool.draw()
        assert batch.rows.max() < pool.state_dict()["filled"]
        drawn += batch.rows.tolist()
        pool.put_back(batch, count_up(batch.x_t, batch.t, batch.t_next, batch.prompt))
        asked.clear()
        pool.walk_on(advance)
        assert sum(asked) <= 6
        filled.append(int(pool.state_dict()["filled"]))
    assert filled[0] <= 18
    assert filled[-1] == 40
    assert filled == sorted(filled)
    assert set(drawn) == set(range(40))
    assert steps_made(pool) == indices(pool).tolist()


class Stopped(Exception):
    pass


def stopping_after(calls: int, asked: list[int]):
    """`count_up`, so many times; of how many rows is noted."""

    def advance(x_t: Tensor, t: Tensor, t_next: Tensor, prompt: Tensor) -> Tensor:
        if len(asked) == calls:
            raise Stopped
        asked.append(len(x_t))
        return count_up(x_t, t, t_next, prompt)

    return advance


@pytest.mark.parametrize("calls", [0, 1, 5, 8])
@pytest.mark.parametrize("ends", [False, True])
def test_a_warm_up_that_was_stopped_goes_on_where_it_was(calls: int, ends: bool) -> None:
    def make() -> tuple[TrajectoryPool, torch.Generator]:
        return make_pool(23, keep_ends=ends, rows=4, ranks=Ranks(0, 1))

    def warm(pool: TrajectoryPool, advance) -> None:
        if ends:
            pool.finish(advance, batch_size=6)
        pool.stagger(advance, batch_size=6)

    (whole, _), (stopped, _), (other, _) = make(), make(), make()
    warm(whole, count_up)
    asked: list[int] = []
    with pytest.raises(Stopped):
        warm(stopped, stopping_after(calls, asked))
    other.load_state_dict(stopped.state_dict())
    assert other.rows_left == stopped.rows_left == (23 * 5 if ends else 0) + int(indices(whole).sum()) - sum(asked)
    warm(other, stopping_after(1000, asked))
    assert same(other.state_dict(), whole.state_dict())
    assert other.rows_left == 0
    assert sum(asked) == (23 * 5 if ends else 0) + int(indices(whole).sum())  # nothing is walked twice
    warm(other, stopping_after(0, []))  # nothing is left to do


@pytest.mark.parametrize("first", [0, 1])
def test_processes_fill_a_pool_as_one_does(first: int) -> None:
    rows = {"rows": 6, "first": first}
    pools = [make_pool(40, ranks=ranks, **rows)[0] for ranks in (Ranks(0, 1), Ranks(0, 2), Ranks(1, 2))]
    for pool in pools:
        pool.stagger(count_up, batch_size=2, count=12)
    for _ in range(25):
        turns = []
        for pool in pools:
            batch = pool.draw()
            pool.put_back(batch, batch.x_t * 0.9)
            calls: list[int] = []

            def advance(x_t: Tensor, *rest: Tensor, calls: list[int] = calls) -> Tensor:
                calls.append(len(x_t))
                return x_t * 0.5

            pool.walk_on(advance, batch_size=2)
            turns.append(len(calls))
        assert turns[1] == turns[2]  # those whose weights lie in pieces stay together
    alone, *pair = (pool.state_dict() for pool in pools)
    whole = torch.empty_like(alone["x"])
    for state, own in zip(pair, pools[1].owners(), strict=True):
        whole[own] = state["x"]
        for name in ("index", "prompt", "target", "filled"):
            assert torch.equal(state[name], alone[name])
    assert torch.equal(whole[pools[0].owners()[0]], alone["x"])
    assert alone["filled"] == 40


def with_ends(size: int = 23, **options) -> TrajectoryPool:
    pool, _ = make_pool(size, keep_ends=True, **options)
    pool.finish(count_up)
    pool.stagger(count_up)
    return pool


def test_ends_are_drawn_apart_from_what_is_advanced() -> None:
    pool = with_ends(500)
    batch, ends, state = pool.draw(50), pool.draw_ends(50), pool.state_dict()
    rows = [(state["end"] == x0).all(dim=(1, 2)).nonzero().item() for x0 in ends.x0]
    assert len(set(rows)) == 50
    assert torch.equal(ends.prompt, state["end_prompt"][rows])
    assert len(set(rows) & set(batch.rows.tolist())) < 20
    there = pool.draw_ends(4, device="meta")
    assert there.x0.device.type == there.prompt.device.type == "meta"


def test_a_walk_that_ends_replaces_its_own_end_alone() -> None:
    pool = with_ends()
    before = pool.state_dict()
    batch = pool.draw(12)
    pool.put_back(batch, torch.full_like(batch.x_t, 0.5))
    after, ended = pool.state_dict(), batch.rows[batch.index == 4]
    assert 0 < len(ended) < 12
    others = torch.ones(23, dtype=torch.bool).index_fill(0, ended, False)
    assert (after["end"][ended] == 0.5).all()
    assert torch.equal(after["end_prompt"][ended], before["prompt"][ended])
    for name in ("end", "end_prompt"):
        assert torch.equal(after[name][others], before[name][others])


def test_a_restored_pool_has_its_ends() -> None:
    pool = with_ends()
    state = pool.state_dict()
    other = with_ends(seed=9)
    assert not torch.equal(other.state_dict()["end"], state["end"])
    other.load_state_dict(state)
    assert same(other.state_dict(), state)


def test_processes_have_the_ends_that_one_has() -> None:
    pools = [with_ends(rows=6, ranks=ranks) for ranks in (Ranks(0, 1), Ranks(0, 2), Ranks(1, 2))]
    for _ in range(12):
        alone, *pair = (pool.draw_ends() for pool in pools)
        assert torch.equal(alone.x0, torch.cat([part.x0 for part in pair]))
        assert torch.equal(alone.prompt, torch.cat([part.prompt for part in pair]))
        for pool in pools:
            batch = pool.draw()
            pool.put_back(batch, batch.x_t * 0.9)
    owners = pools[0].owners()[0], *(rows for rows in pools[1].owners())
    whole = torch.empty_like(pools[0].state_dict()["end"])
    for pool, rows in zip(pools[1:], owners[1:], strict=True):
        whole[rows] = pool.state_dict()["end"]
    assert torch.equal(whole, pools[0].state_dict()["end"][owners[0].argsort()])


def use(pool: TrajectoryPool, updates: int) -> list[Tensor]:
    """Some updates, and everything that was drawn."""
    seen = []
    for _ in range(updates):
        batch = pool.draw(9)
        seen += [batch.rows, batch.x_t, batch.t, batch.prompt]
        pool.put_back(batch, batch.x_t * 0.9 + batch.t[:, None, None] / 1000)
    return seen


def test_a_restored_pool_goes_on_bit_for_bit() -> None:
    pool, g = make_pool()
    pool.stagger(count_up)
    use(pool, 4)
    state, generator_state = pool.state_dict(), g.get_state()
    expected = use(pool, 12)  # long enough for restarts, which draw noise and prompts
    other, other_g = make_pool(seed=99)
    assert not same(other.state_dict(), state)
    other.load_state_dict(state)
    other_g.set_state(generator_state)
    assert all(torch.equal(a, b) for a, b in zip(use(other, 12), expected, strict=True))
    assert same(other.state_dict(), pool.state_dict())
    assert torch.equal(other_g.get_state(), g.get_state())


def test_a_saved_state_does_not_change_with_the_pool() -> None:
    pool, _ = make_pool()
    state = pool.state_dict()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    use(pool, 3)
    assert same(state, copies)
    pool.load_state_dict(state)
    use(pool, 3)
    assert same(state, copies)


def test_the_seed_decides_everything() -> None:
    (first, _), (second, _), (third, _) = make_pool(), make_pool(), make_pool(seed=1)
    assert same(first.state_dict(), second.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(use(first, 8), use(second, 8), strict=True))
    assert not torch.equal(first.state_dict()["x"], third.state_dict()["x"])


def test_device_and_dtype() -> None:
    pool, _ = make_pool(dtype=torch.bfloat16)
    assert pool.state_dict()["x"].dtype == torch.bfloat16
    there = pool.draw(4, device="meta")
    for tensor in (there.x_t, there.index, there.t, there.t_next, there.prompt):
        assert tensor.device.type == "meta"
    assert there.rows.device.type == "cpu"  # rows are places in the pool
    here = pool.draw(4)
    pool.put_back(here, here.x_t.double().requires_grad_() * 2)
    stored = pool.state_dict()["x"]
    assert torch.equal(stored[here.rows], here.x_t * 2)
    assert not stored.requires_grad
    seen = []
    make_pool()[0].stagger(lambda x, *rest: seen.append(x.device.type) or torch.zeros(x.shape), device="meta")
    assert set(seen) == {"meta"}


def test_wrong_use_is_refused() -> None:
    pool, _ = make_pool(5)
    for size in (0, 6):
        with pytest.raises(InputError, match=f"cannot draw {size} of 5"):
            pool.draw(size)
    other = TrajectoryPool(5, (2, 3), GRID - 1, 7, torch.Generator())
    bigger, _ = make_pool(6)
    for wrong in (other, bigger):
        with pytest.raises(InputError, match="another size, shape or grid"):
            wrong.load_state_dict(pool.state_dict())
    with pytest.raises(InputError, match="is empty"):
        make_pool(0)
