"""Arithmetic on weights: the EMA teacher, composition, Neon, and random offsets of equal norm."""

import pytest
import torch
from torch import Tensor, nn

from selfnpo_core import InputError, compose, ema_update, neon
from selfnpo_core.negative import norm, random_like, relative_drift, shuffled


def weights(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "scale": ()}
    return {name: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def test_ema_moves_in_place_by_one_minus_decay() -> None:
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [p.detach().clone() for p in teacher.parameters()]
    places = [p.data_ptr() for p in teacher.parameters()]
    ema_update(teacher.parameters(), student.parameters(), 0.9)
    for old, new, place, target in zip(before, teacher.parameters(), places, student.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), 0.9 * old + 0.1 * target.detach())
        assert new.data_ptr() == place
        assert new.requires_grad
        assert new.grad_fn is None


def test_ema_is_the_geometric_average_of_what_the_student_was() -> None:
    teacher, path = [torch.zeros(1, dtype=torch.float64)], [1.0, -2.0, 5.0]
    for value in path:
        ema_update(teacher, [torch.full((1,), value, dtype=torch.float64)], 0.75)
    expected = sum(0.25 * 0.75 ** (2 - i) * value for i, value in enumerate(path))
    assert teacher[0].item() == pytest.approx(expected)
    kept = teacher[0].clone()
    ema_update(teacher, [torch.ones(1, dtype=torch.float64)], 1.0)
    assert torch.equal(teacher[0], kept)


def test_ema_refuses_other_parameters() -> None:
    for teacher, student in (([], []), ([torch.zeros(1)], [])):
        with pytest.raises(AssertionError):
            ema_update(teacher, student, 0.9)


def test_compose_adds_both_offsets_with_their_factors() -> None:
    base, eta, delta = weights(0), weights(1), weights(2)
    del delta["conv.bias"]  # an offset may name a part only
    result = compose(base, eta, delta, alpha=0.5, beta=0.25)
    for name in base:
        expected = base[name] + 0.5 * eta[name] + 0.25 * delta.get(name, torch.zeros(()))
        torch.testing.assert_close(result[name], expected)


def test_compose_defaults_to_whole_offsets_and_copies() -> None:
    base, delta = weights(0), weights(1)
    whole = compose(base, delta=delta)
    for name in base:
        torch.testing.assert_close(whole[name], base[name] + delta[name])
    copy = compose(base)
    copy["scale"] += 1
    assert copy["scale"] != base["scale"]


def test_sums_are_made_in_float32_and_kept_in_the_bases_dtype() -> None:
    base, delta = weights(0, torch.bfloat16), {name: 0.003 * tensor for name, tensor in weights(1).items()}
    result = compose(base, delta, delta, alpha=1.0, beta=1.0)
    for name in base:
        assert result[name].dtype == torch.bfloat16
        assert torch.equal(result[name], (base[name].float() + 2 * delta[name].float()).bfloat16())


def test_neon_is_composition_with_a_negative_factor() -> None:
    base, delta = weights(0), weights(1)
    result = neon(base, delta, 0.4)
    for name in base:
        torch.testing.assert_close(result[name], base[name] - 0.4 * delta[name])


def test_offsets_of_another_model_are_refused() -> None:
    with pytest.raises(InputError, match="has 'other'"):
        compose(weights(0), delta={"other": torch.zeros(2)})
    with pytest.raises(InputError, match=r"'scale' is \(2,\), but \(\) in the base"):
        neon(weights(0), {"scale": torch.zeros(2)}, 1.0)


def test_a_random_offset_has_each_tensors_norm_and_another_direction() -> None:
    delta = weights(0)
    random = random_like(delta, torch.Generator().manual_seed(5))
    for name in delta:
        torch.testing.assert_close(random[name].norm(), delta[name].norm())
    a, b = random["conv.weight"].flatten(), delta["conv.weight"].flatten()
    assert abs(torch.dot(a, b) / (a.norm() * b.norm())) < 0.3
    again = random_like(delta, torch.Generator().manual_seed(5))
    assert all(torch.equal(random[name], again[name]) for name in delta)
    half = random_like({"a": torch.full((100,), 300.0, dtype=torch.float16)}, torch.Generator().manual_seed(0))
    assert half["a"].dtype == torch.float16
    assert half["a"].float().norm().item() == pytest.approx(3000, rel=1e-3)


def test_norm_and_relative_drift() -> None:
    delta = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]], dtype=torch.float16)}
    base = {"a": torch.tensor([6.0, 0.0]), "b": torch.tensor([[8.0]])}
    assert norm(delta) == pytest.approx(5)
    assert norm({}) == 0
    assert relative_drift(delta, base) == pytest.approx(0.5)
    assert norm({"a": torch.full((10_000,), 1000.0, dtype=torch.float16)}) == pytest.approx(1e5)  # no overflow
    assert norm({"a": torch.full((4_000_000,), 1e-3)}) == pytest.approx(2, rel=1e-6)  # nor lost small numbers


def test_a_shuffled_offset_holds_the_same_numbers_elsewhere() -> None:
    delta = weights(1)
    first, again, other = (shuffled(delta, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for name, tensor in delta.items():
        assert torch.equal(first[name].flatten().sort().values, tensor.flatten().sort().values)
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["conv.weight"], delta["conv.weight"])
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
