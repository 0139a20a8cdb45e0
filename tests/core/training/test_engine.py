"""Updates of a run: what they are made from, and what becomes of those that are not finite."""

import pytest
import torch
from tests.core.training.engines import engine
from tests.core.training.toy import ToyBackbone

from selfnpo_core import RunError


@pytest.mark.parametrize("rollout", ["pool", "truncated", "full"])
def test_accumulating_gradients_equals_a_larger_batch(rollout):
    weights, losses = [], []
    for batch_size, parts in ((12, 1), (3, 4)):
        changes = {"batch_size": batch_size, "grad_accumulation": parts, "rollout": rollout}
        with engine(train="full", learning_rate=1e-3, student_prompt_dropout=0.3, **changes) as made:
            losses.append([update.loss for update in made.updates()])
            weights.append(torch.cat([p.detach().flatten() for p in made.student.parameters.values()]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert (weights[0] - weights[1]).abs().max() < 1e-5


def test_an_update_draws_from_its_seed_rank_and_number_alone():
    losses = []
    for disturbed in (False, True):
        with engine() as made:
            for update in made.updates():
                losses.append(update.loss)
                if disturbed:
                    torch.rand(7, generator=made.generator)
    assert losses[:4] == losses[4:]


class Poisoned(ToyBackbone):
    """Predicts NaN for the student from its third forward on."""

    count = 0

    def predict(self, x_t, t, prompt):
        self.count += torch.is_grad_enabled()
        output = super().predict(x_t, t, prompt)
        return output * float("nan") if torch.is_grad_enabled() and self.count >= 3 else output


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched():
    with engine(Poisoned(), max_skipped=0) as made:
        updates = made.updates()
        next(updates), next(updates)
        with pytest.raises(RunError, match=r"loss nan.* at update 3.*lower learning_rate \(0.01\)"):
            next(updates)
        assert all(torch.isfinite(p).all() for p in made.student.parameters.values())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_updates_that_are_not_finite_are_skipped_and_counted_up_to_a_limit(accumulation):
    with engine(Poisoned(), max_skipped=2, steps=9, batch_size=4, grad_accumulation=accumulation) as made:
        updates = made.updates()
        good = [next(updates) for _ in range(2 // accumulation)]
        before = {part: dict(walk) for part, walk in made.student.walks().items()}
        bad = [next(updates), next(updates)]
        after = {part: dict(walk) for part, walk in made.student.walks().items()}
        with pytest.raises(RunError, match="max_skipped is 2"):
            next(updates)
    assert [update.skipped for update in good + bad] == [0] * len(good) + [1, 2]
    assert all(torch.equal(after[p][n], before[p][n]) for p in before for n in before[p])


@pytest.mark.parametrize("change", [float("nan"), float("inf")])
def test_one_bad_update_costs_only_itself(change):
    class Once(ToyBackbone):
        count = 0

        def predict(self, x_t, t, prompt):
            self.count += torch.is_grad_enabled()
            output = super().predict(x_t, t, prompt)
            return output * change if torch.is_grad_enabled() and self.count == 2 else output

    with engine(Once(), steps=4) as made:
        updates = list(made.updates())
        assert all(torch.isfinite(p).all() for p in made.student.parameters.values())
    assert [update.skipped for update in updates] == [0, 1, 1, 1]
    assert updates[1].drift == updates[0].drift != updates[2].drift


def test_what_costs_is_measured_at_first_and_then_now_and_then(monkeypatch):
    with engine(steps=8, measure_every=3) as made:
        asked, drift = [], made.student.drift
        monkeypatch.setattr(made.student, "drift", lambda: asked.append(made.step) or drift())
        updates = list(made.updates())
        assert updates[5].drift != drift()
    assert asked == [1, 2, 3, 6]
    drifts = [update.drift for update in updates]
    assert len(set(drifts[:3])) == 3
    assert drifts[3:5] == [drifts[2]] * 2
    assert drifts[5:] == [drifts[5]] * 3
    assert drifts[5] != drifts[2]
    assert [update.step for update in updates if update.spread] == [1, 2, 3, 6]
    assert updates[0].spread.items() <= updates[0].to_dict().items()
    assert min(updates[0].spread.values()) > 0
    assert not any(name.startswith("spread") for name in updates[3].to_dict())
