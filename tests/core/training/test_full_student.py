"""All weights in training: how far they are from the base."""

import pytest
import torch
from tests.core.training.engines import engine
from tests.core.training.toy import ToyBackbone, toy_recipe

from selfnpo_core.models.storage import narrowest
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training.full_student import FullStudent


def test_full_drift_is_the_distance_from_the_base():
    with engine(train="full") as made:
        update = list(made.updates())[-1]
        delta = dict(made.student.delta())
        now = dict(made.student.parameters)
    base = dict(ToyBackbone().denoiser.named_parameters())
    squares = sum(float((now[name] - base[name]).detach().square().sum()) for name in base)
    size = sum(float(p.detach().square().sum()) for p in base.values())
    assert update.drift == pytest.approx((squares / size) ** 0.5, rel=1e-5)
    for name, offset in delta.items():
        torch.testing.assert_close(offset.float(), (now[name] - base[name]).detach(), rtol=1e-2, atol=1e-6)


def wide(dtype: torch.dtype) -> ToyBackbone:
    """Of 2 MiB in float32, whose numbers 16 bits hold."""
    backbone = ToyBackbone()
    backbone.denoiser = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(8)]).to(torch.bfloat16).to(dtype)
    return backbone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_making_student_and_teacher_holds_them_and_one_parameter(dtype):
    backbone = wide(dtype)
    numbers = sum(p.numel() for p in backbone.denoiser.parameters())
    made = []

    def make() -> None:
        made.append(FullStudent(backbone, toy_recipe(train="full")))
        made[0].place(torch.device("cpu"))

    peak = peak_tensor_bytes(make)
    narrow = 2 * numbers if dtype == torch.float32 else 0
    assert 8 * numbers <= peak <= 8 * numbers + narrow + 3 * 4 * 256 * 256
    held = [*made[0].base.parameters(), *made[0].parameters.values(), *made[0].teacher.values()]
    assert sum(p.numel() * p.element_size() for p in held) == (2 + 4 + 4) * numbers


def test_a_base_kept_in_16_bits_answers_and_is_given_back_as_it_was():
    backbone = wide(torch.float32)
    base, x = backbone.denoiser, torch.randn(3, 256)
    before, out = {name: p.detach().clone() for name, p in base.named_parameters()}, base(x)
    student = FullStudent(backbone, toy_recipe(train="full"))
    student.place(torch.device("cpu"))
    with student.role("base"), student.role("base"):
        assert torch.equal(backbone.denoiser(x), out)
    with student.role("base"):
        with student.role("base"):
            pass
        assert torch.equal(backbone.denoiser(x), out)
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert backbone.denoiser is student.network
    assert student.drift() == 0
    with torch.no_grad():
        next(iter(student.parameters.values())).add_(1)
    size = sum(float(p.square().sum()) for p in before.values()) ** 0.5
    assert student.drift() == pytest.approx(256 / size, rel=1e-5)
    student.close()
    assert backbone.denoiser is base
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())


def test_numbers_that_16_bits_do_not_hold_stay_as_they_are():
    assert narrowest(torch.tensor([1.0, 0.1])).dtype == torch.float32
    assert narrowest(torch.tensor([1.0, 0.1]).half().float()).dtype == torch.float16
    assert narrowest(torch.tensor([1.0, 1e-30]).bfloat16().float()).dtype == torch.bfloat16
