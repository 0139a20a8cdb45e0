"""A LoRA in training: its layers, and how far it is from the base."""

import pytest
from tests.core.training.engines import engine
from tests.core.training.toy import ToyBackbone

from selfnpo_core import InputError


def test_lora_drift_is_that_of_the_merged_weights():
    with engine(targets="all", lora_alpha=8.0) as made:
        update = list(made.updates())[-1]
        network = made.student.network
        squares = 0.0
        for name in ("conv", "to_q", "to_out"):
            squares += float(network.get_submodule(name).get_delta_weight("npo").detach().square().sum())
    size = sum(float(p.detach().square().sum()) for p in ToyBackbone().denoiser.parameters())
    assert update.drift == pytest.approx((squares / size) ** 0.5, rel=1e-5)


def test_lora_on_layers_of_choice():
    with engine(targets=["conv", "to_q"]) as made:
        assert {name.split(".lora_")[0] for name in made.student.parameters} == {"conv", "to_q"}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"targets": "everything"}, "attention, all"),
        ({"targets": ["to_q", "to_w"]}, r"\['to_w'\]"),
        ({"targets": []}, "no layers"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing"),
    ],
)
def test_what_the_model_cannot_do(changes, word):
    with pytest.raises(InputError, match=word), engine(**changes):
        pass
