"""Rows' noise: the same whoever makes it, and made by nobody who does not need it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.core.training.toy import SHAPE, ToyBackbone, toy_recipe

from selfnpo_core import TrajectoryPool
from selfnpo_core.ranks import Ranks, row_noise
from selfnpo_core.training.sources import make_source
from selfnpo_core.training.updates import noised_looks


@contextmanager
def normal_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many `torch.randn` makes, call by call."""
    made: list[int] = []
    randn: Callable[..., torch.Tensor] = torch.randn

    def counting(*size: Any, **options: Any) -> torch.Tensor:
        result = randn(*size, **options)
        made.append(result.numel())
        return result

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", counting)
        yield made


def test_a_row_is_the_same_whoever_makes_it() -> None:
    g = torch.Generator()
    whole = row_noise(6, slice(None), (2, 5), g.manual_seed(3))
    state = g.get_state()
    assert torch.equal(row_noise(6, slice(2, 4), (2, 5), g.manual_seed(3)), whole[2:4])
    assert torch.equal(g.get_state(), state)
    mask = torch.tensor([True, False, False, True, False, True])
    assert torch.equal(row_noise(6, mask, (2, 5), g.manual_seed(3)), whole[mask])
    assert row_noise(6, ~torch.ones(6, dtype=torch.bool), (2, 5), g.manual_seed(3)).shape == (0, 2, 5)
    assert torch.equal(g.get_state(), state)
    assert not torch.equal(row_noise(6, slice(None), (2, 5), g), whole)


def test_rows_are_gaussian_and_independent() -> None:
    noise = row_noise(400, slice(None), (250,), torch.Generator().manual_seed(0)).double()
    assert abs(noise.mean()) < 0.015
    assert abs(noise.std() - 1) < 0.01
    for vectors in (noise, noise.T):
        apart = torch.corrcoef(vectors).fill_diagonal_(0)
        assert apart.abs().max() < 6 / vectors.shape[1] ** 0.5
        assert abs(apart.std() - vectors.shape[1] ** -0.5) < 0.01


@pytest.mark.parametrize("rollout", ["pool", "truncated", "full"])
def test_a_process_makes_the_noise_of_its_own_rows_only(rollout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pool's beginning, in an update's re-noising, and where every update starts from noise."""
    backbone, recipe = ToyBackbone(), toy_recipe(rollout=rollout, batch_size=2, pool_size=24, truncation_steps=1)
    each = torch.Size(SHAPE).numel()

    def made(count: int) -> int:
        g = torch.Generator().manual_seed(0)
        with normal_numbers(monkeypatch) as numbers:
            shape, ranks = tuple(backbone.latent_shape), Ranks(1, count)
            source = make_source(
                recipe,
                None,  # type: ignore[arg-type]
                backbone.schedule,
                shape=shape,
                num_prompts=3,
                generator=g,
                device=torch.device("cpu"),
                ranks=ranks,
            )
            monkeypatch.setattr(source, "looks", lambda drawn, batch_size: iter([]))
            list(noised_looks(source, backbone, recipe, g, ranks))
        return sum(numbers)

    own = 2 * each  # of the re-noising
    own += 24 // 4 * each if rollout == "pool" else 2 * each
    assert made(4) == own


def test_a_pool_restarts_its_own_trajectories_only(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, g = torch.tensor([900, 100]), torch.Generator().manual_seed(0)
    pool, ended = TrajectoryPool(24, (5,), grid, 3, g, rows=8, ranks=Ranks(1, 4)), []
    for _ in range(20):
        batch = pool.draw()
        ended.append(int((batch.index == 1).sum()))
        with normal_numbers(monkeypatch) as numbers:
            pool.put_back(batch, batch.x_t)
        assert sum(numbers) == 5 * ended[-1]
    assert 0 < sum(ended) < 40
