"""κ, k and the share of r of changes that are made of known parts."""

import math

import pytest
import torch
from torch import Tensor

from selfnpo_core import guide
from selfnpo_core.decomposition import Decomposition, contrast, decompose, decompose_all, inner_products

SHAPES = [(3, 5, 6), (4, 3, 5, 6)]  # pictures: (C, H, W); clips: (F, C, H, W)


def predictions(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """x̂0 with and without a prompt, (4, *shape): correlated, with a mean of its own in each row and channel."""
    generator = torch.Generator().manual_seed(seed)
    mean = 3 * torch.randn((4, *(1,) * (len(shape) - 3), shape[-3], 1, 1), generator=generator, dtype=torch.float64)
    empty = mean + torch.randn((4, *shape), generator=generator, dtype=torch.float64)
    return 0.7 * empty + 0.5 * torch.randn(empty.shape, generator=generator, dtype=torch.float64), empty


def flattened(empty: Tensor) -> Tensor:
    """m, channel by channel."""
    result = torch.empty_like(empty)
    for row in range(len(empty)):
        for channel in range(empty.shape[-3]):
            part = empty[row].select(-3, channel)
            result[row].select(-3, channel).copy_(part - part.sum() / part.numel())
    return result


def elsewhere(*others: Tensor) -> Tensor:
    """A field at right angles to the others, as long as the first."""
    field = torch.randn(others[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    basis = torch.linalg.qr(torch.stack([other.flatten() for other in others], dim=1)).Q
    flat = field.flatten() - basis @ (basis.T @ field.flatten())
    return (flat * others[0].norm() / flat.norm()).reshape(field.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("kappa", "k", "rest"), [(-0.3, 0, 0), (0, 0.4, 0), (0, 0, 0.2), (-0.3, 0.4, 0.2), (0.1, -2, 1)]
)
def test_known_parts_are_recovered(shape: tuple[int, ...], kappa: float, k: float, rest: float) -> None:
    positive, empty = predictions(shape)
    m, d = flattened(empty), positive - empty
    r = rest * elsewhere(m, d)
    change = kappa * m + k * d + r
    found = decompose(inner_products(positive, empty, empty + change))
    assert found.kappa == pytest.approx(kappa, abs=1e-9)
    assert found.k == pytest.approx(k, abs=1e-9)
    assert found.rest_share == pytest.approx(float(r.square().sum() / change.square().sum()), abs=1e-9)
    assert found.size == pytest.approx(float(change.norm() / d.norm()))
    assert found.contrast_share == pytest.approx(cosine(change, m) ** 2)
    assert found.scale_share == pytest.approx(cosine(change, d) ** 2)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def test_r_is_the_least_that_any_knobs_leave() -> None:
    positive, empty = predictions(SHAPES[0])
    negative = empty + elsewhere(positive) - 0.2 * positive
    found = decompose(inner_products(positive, empty, negative))
    knobs = torch.stack([flattened(empty).flatten(), (positive - empty).flatten()], dim=1)
    change = (negative - empty).flatten()
    solved = torch.linalg.lstsq(knobs, change[:, None])
    assert [found.kappa, found.k] == pytest.approx(solved.solution.flatten().tolist())
    assert found.rest_share == pytest.approx(
        float((change - knobs @ solved.solution[:, 0]).norm() / change.norm()) ** 2
    )


def test_the_mean_is_of_a_row_and_a_channel() -> None:
    _, empty = predictions(SHAPES[1])
    torch.testing.assert_close(contrast(empty), flattened(empty))
    torch.testing.assert_close(contrast(empty + torch.arange(3.0)[:, None, None]), flattened(empty))


@pytest.mark.parametrize("k", [-0.5, 0.25, 1.0])
def test_a_negative_moved_along_the_direction_is_plain_guidance(k: float) -> None:
    positive, empty = predictions(SHAPES[0])
    negative = empty + k * (positive - empty)
    scale = decompose(inner_products(positive, empty, negative)).effective_scale(5.0)
    assert scale == pytest.approx(5 - 4 * k)
    torch.testing.assert_close(guide(negative, positive, 5.0), guide(empty, positive, scale))


def test_rows_may_come_one_after_another() -> None:
    positive, empty = predictions(SHAPES[0])
    negative = empty + elsewhere(positive)
    parts = [inner_products(*(x[rows] for x in (positive, empty, negative))) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(parts), inner_products(positive, empty, negative))


def test_knobs_may_turn_from_level_to_level() -> None:
    """Two levels, each a pure scale change of its own k: one k for both is between, and nothing is left over."""
    positive, empty = predictions(SHAPES[0])
    products = [inner_products(positive, empty, empty + k * (positive - empty)) for k in (0.2, 0.6)]
    found = decompose_all(products)
    assert found.k == pytest.approx(0.4)
    assert found.kappa == pytest.approx(0, abs=1e-9)
    assert (found.rest_share, found.scale_share) == pytest.approx((0, 1))


def test_levels_count_by_the_size_of_the_change() -> None:
    positive, empty = predictions(SHAPES[0])
    m, d = flattened(empty), positive - empty
    scale, other = 3 * d, elsewhere(m, d)
    products = [inner_products(positive, empty, empty + change) for change in (scale, other)]
    share = float(other.square().sum() / (other.square().sum() + scale.square().sum()))
    assert decompose_all(products).rest_share == pytest.approx(share)


def test_nothing_to_take_apart() -> None:
    """No change; a model that does not see its prompt; a flat null prediction; both knobs the same; no numbers."""
    positive, empty = predictions(SHAPES[0])
    m, flat = flattened(empty), torch.ones_like(empty)
    none = decompose(inner_products(positive, empty, empty))
    assert none == Decomposition(size=0, kappa=0, k=0, contrast_share=0, scale_share=0, rest_share=0)
    blind = decompose(inner_products(empty, empty, empty + 0.5 * m))
    assert (blind.size, blind.kappa, blind.k, blind.rest_share) == pytest.approx((math.inf, 0.5, 0, 0), abs=1e-9)
    grey = decompose(inner_products(positive, flat, flat + 0.5 * (positive - flat)))
    assert (grey.kappa, grey.k, grey.rest_share) == pytest.approx((0, 0.5, 0), abs=1e-9)
    nearly = m + 1e-7 * torch.randn(m.shape, generator=torch.Generator().manual_seed(2), dtype=m.dtype)
    same = decompose(inner_products(empty + nearly, empty, empty + 0.5 * m))
    assert (same.kappa, same.k, same.rest_share) == pytest.approx((0.25, 0.25, 0), abs=1e-6)
    lost = decompose(inner_products(positive, empty, empty * math.nan))
    assert math.isnan(lost.kappa)
    assert math.isnan(decompose_all([inner_products(positive, empty, empty * math.nan)]).rest_share)
