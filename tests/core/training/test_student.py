"""Student, teacher and base of either kind: which weights are in use, and what is left of them."""

import pytest
import torch
from tests.core.training.engines import engine
from tests.core.training.toy import PROMPTS, ToyBackbone

from selfnpo_core.models.identity import weights_hash


@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_teacher_is_the_moving_average_of_the_student(train):
    with engine(train=train, ema_decay=0.8) as made:
        expected = {name: p.detach().clone() for name, p in made.student.parameters.items()}
        for _ in made.updates():
            for name, parameter in made.student.parameters.items():
                expected[name] = 0.8 * expected[name] + 0.2 * parameter.detach()
        assert len(expected) == len(made.student.teacher) > 0
        for name, teacher in made.student.teacher.items():
            torch.testing.assert_close(teacher, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_each_role_uses_its_own_weights(train):
    x = (torch.randn(3, 4, 4, 4), torch.tensor([500, 300, 100]), torch.tensor([0, 1, 2]))
    before = ToyBackbone()
    before.embed(PROMPTS)
    with engine(train=train, ema_decay=0.5) as made:
        list(made.updates())
        predictions = {}
        for role in ("student", "teacher", "base"):
            with made.student.role(role), torch.no_grad():
                predictions[role] = made.backbone.predict(*x)
        with torch.no_grad():
            assert torch.equal(made.backbone.predict(*x), predictions["student"])
            assert torch.equal(before.predict(*x), predictions["base"])
        assert (predictions["teacher"] - predictions["base"]).abs().max() > 1e-4
        assert (predictions["teacher"] - predictions["student"]).abs().max() > 1e-4


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_base_is_untouched_and_given_back(train, precision):
    backbone = ToyBackbone()
    network = backbone.denoiser
    attributes = set(vars(network))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with engine(backbone, train=train, targets="all", mixed_precision=precision) as made:
        list(made.updates())
        if train == "lora":
            assert weights_hash(network) == backbone.base_hash
            assert {n for n, p in network.named_parameters() if p.requires_grad} == {
                f"{layer}.lora_{ab}.npo.weight" for layer in ("conv", "to_q", "to_out") for ab in "AB"
            }
    assert backbone.denoiser is network
    assert "forward" not in set(vars(network)) - attributes
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_half_precision_base_with_float32_training_weights(train):
    with engine(ToyBackbone(dtype=torch.bfloat16), train=train, mixed_precision="bf16") as made:
        updates = list(made.updates())
        assert {p.dtype for p in made.student.parameters.values()} == {torch.float32}
        assert {t.dtype for t in made.student.teacher.values()} == {torch.float32}
        assert made.denoisers.student(torch.randn(1, 4, 4, 4), torch.tensor([5]), torch.tensor([0])).x0.dtype == (
            torch.float32
        )
    assert updates[-1].drift > 0
