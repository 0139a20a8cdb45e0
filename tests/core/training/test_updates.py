"""What an update does: forwards, gradients, the teacher, the base; and the same for every way to run it."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core import NULL, InputError, NoiseSchedule, RunError, trajectory
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.training import Recipe
from selfnpo_core.training.accelerators import make_accelerator
from selfnpo_core.training.engine import Engine
from selfnpo_core.training.updates import Noised, noised_looks, reference_rows, teacher_rows, update_loss


@contextmanager
def engine(backbone: ToyBackbone | None = None, **changes) -> Iterator[Engine]:
    recipe: Recipe = toy_recipe(**changes)
    backbone = backbone or ToyBackbone()
    backbone.embed(PROMPTS)
    made = Engine(backbone, recipe, len(PROMPTS), make_accelerator(recipe))
    made.warm_up()
    try:
        yield made
    finally:
        made.close()


class Spy(ToyBackbone):
    """Notes (with gradient?, prompts) of every forward, by a hook on whichever network is in use."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen: list[tuple[bool, list[int]]] = []

    def predict(self, x_t, t, prompt):
        def note(module, args):
            assert len(args[0]) == len(prompt)
            self.seen.append((torch.is_grad_enabled(), prompt.tolist()))

        handle = self.denoiser.register_forward_pre_hook(note)
        try:
            return super().predict(x_t, t, prompt)
        finally:
            handle.remove()

    def rows(self, with_gradient: bool) -> int:
        return sum(len(prompt) for gradient, prompt in self.seen if gradient is with_gradient)


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize(("w", "teacher"), [(-1.0, 1), (0.0, 1), (-5.0, 2), (3.0, 2)])
def test_forwards_of_an_update_from_the_pool(train, w, teacher):
    spy = Spy()
    with engine(spy, train=train, teacher_guidance=w) as made:
        spy.seen.clear()
        update = next(made.updates())
    assert (spy.rows(False), spy.rows(True)) == (8 * teacher, 8)
    assert (update.teacher_rows, update.student_rows, update.base_rows) == (8 * teacher, 8, 0)
    assert teacher_rows(made.recipe) == teacher


@pytest.mark.parametrize(
    ("rollout", "objective"),
    [
        *itertools.product(["pool", "truncated"], ["tdft", "gradient_reversal", "dpo"]),
        ("full", "tdft"),
    ],
)
@pytest.mark.parametrize("w", [-1.0, -2.0])
def test_the_table_of_forwards_is_what_happens(rollout, objective, w):
    spy = Spy()
    changes = {"batch_size": 4, "steps": 30, "rollout": rollout, "objective": objective, "teacher_guidance": w}
    with engine(spy, **changes) as made:
        spy.seen.clear()
        updates = list(made.updates())
    count = 4 * len(updates)
    expected = teacher_rows(made.recipe) + reference_rows(made.recipe)
    spread = 0.2 if rollout == "truncated" else 0  # there the walks are of random length
    assert spy.rows(False) / count == pytest.approx(expected, rel=spread)
    assert spy.rows(True) == count
    assert sum(u.teacher_rows + u.base_rows for u in updates) == spy.rows(False)


def fixed_loss(made: Engine, pool: dict, weights: str) -> float:
    """The objective on rows that are always the same, for the student or, in its place, the base."""
    made.source.load_state_dict(pool)
    made.generator.manual_seed(99)
    role = getattr(made.denoisers, weights)
    denoisers = copy.copy(made.denoisers)
    object.__setattr__(denoisers, "student", role)
    losses = [
        float(update_loss(noised, denoisers, made.recipe).detach())
        for noised in noised_looks(made.source, made.backbone, made.recipe, made.generator)
    ]
    made.source.put_back()
    return sum(losses) / len(losses)


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "tdft"},
        {"objective": "tdft", "loss": "l2", "teacher_guidance": -3.0},
        {"objective": "dpo", "dpo_beta": 10.0},
    ],
    ids=["tdft", "tdft-l2", "dpo"],
)
def test_an_objective_falls_and_the_weights_change(train, changes):
    with engine(
        train=train, steps=40, batch_size=16, ema_decay=1.0, weight_decay=0.0, targets="all", **changes
    ) as made:
        pool = made.source.state_dict()
        assert fixed_loss(made, pool, "student") == pytest.approx(fixed_loss(made, pool, "base"), abs=1e-6)
        updates = list(made.updates())
        assert fixed_loss(made, pool, "student") < 0.995 * fixed_loss(made, pool, "base")
        assert updates[-1].drift > 0.01
        assert not torch.equal(
            torch.cat([p.flatten() for p in made.student.parameters.values()]),
            torch.cat([t.flatten() for t in made.student.teacher.values()]),
        )


def fixed_parts(made: Engine) -> list[Noised]:
    made.generator.manual_seed(5)
    parts = list(noised_looks(made.source, made.backbone, made.recipe, made.generator))
    made.source.put_back()
    return parts


def test_the_student_sees_x_t_with_more_noise():
    """x_s = r·x_t + sqrt(σ_s² − r²·σ_t²)·ε with standard normal ε, r = α_s/α_t, and s beyond t."""
    with engine(batch_size=200, pool_size=200) as made:
        (noised,) = fixed_parts(made)
    t, s = (made.backbone.schedule.at(level, like=noised.x_s) for level in (noised.look.t, noised.s))
    assert (noised.s > noised.look.t).all()
    ratio = s.alpha / t.alpha
    noise = (noised.x_s - ratio * noised.look.x_t) / (s.sigma**2 - ratio**2 * t.sigma**2).sqrt()
    assert float(noise.mean()) == pytest.approx(0, abs=0.04)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    for look in (noised.look.x_t, noised.look.weak.x0):
        assert abs(float((noise * look).mean() / look.std())) < 0.04


@pytest.mark.parametrize("objective", ["tdft", "gradient_reversal", "dpo"])
def test_at_the_noisiest_timestep_nothing_is_trained(objective):
    """Zero terminal SNR, the grid's first point the noisiest timestep: those rows are finite, and only advanced."""
    backbone = ToyBackbone()
    scheduler = CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    backbone.schedule, backbone.prediction_type = NoiseSchedule.from_scheduler(scheduler), "v_prediction"
    with engine(backbone, objective=objective, batch_size=20, train="full") as made:
        (noised,) = fixed_parts(made)
        first = noised.look.t == 999
        assert 0 < int(first.sum()) < 20
        assert torch.equal(noised.s[first], noised.look.t[first])
        only_first = replace(noised, s=torch.where(first, noised.s, noised.look.t))
        update_loss(only_first, made.denoisers, made.recipe).backward()
        assert all(not p.grad.any() for p in made.student.parameters.values())
        loss = update_loss(noised, made.denoisers, made.recipe)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in made.student.parameters.values())
        assert any(p.grad.any() for p in made.student.parameters.values())
        assert all(tensor.isfinite().all() for tensor in made.source.state_dict().values())


def test_the_pool_moves_one_ddim_step_an_update():
    with engine(batch_size=10, pool_size=10) as made:
        before = made.source.state_dict()
        (noised,) = fixed_parts(made)
        after, grid = made.source.state_dict(), made.backbone.schedule.grid(5)
        going = (before["index"] < 4).nonzero()[:, 0]
        t = grid[before["index"][going]]
        estimate = made.denoisers.teacher(before["x"][going], t, torch.full_like(going, NULL))
        level = made.backbone.schedule.at(grid[before["index"][going] + 1], like=before["x"])
    assert len(going) == 8
    assert sorted(noised.look.t.tolist()) == sorted(grid[before["index"]].tolist())
    assert torch.equal(after["index"][going], before["index"][going] + 1)
    assert (after["index"][before["index"] == 4] == 0).all()
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


def test_dpo_moves_towards_the_weak_estimate_and_from_the_strong_one():
    settings = {"objective": "dpo", "dpo_beta": 10.0, "strong_guidance": 6.5, "loss": "l2"}
    with engine(train="full", steps=40, batch_size=16, ema_decay=1.0, **settings) as made:
        list(made.updates())
        (noised,) = fixed_parts(made)
        margins = []
        for ask in (made.denoisers.base, made.denoisers.student):
            x0 = ask(noised.x_s, noised.s, noised.prompt).x0.detach()
            weak, strong = noised.look.weak.x0, noised.look.strong.x0
            margins.append(float(((x0 - strong) ** 2 - (x0 - weak) ** 2).mean()))
    assert margins[1] > margins[0] + 1e-3


def test_gradient_reversal_moves_as_tdft_at_the_equivalent_guidance():
    """Its loss need not fall. With l2 its gradient is (1 − λ) times TDFT's at w′ = (w_w − λ·w_s)/(1 − λ)."""
    gradients = []
    for changes in (
        {"objective": "gradient_reversal", "teacher_guidance": -1.0, "strong_guidance": 6.5, "reversal_lambda": 0.25},
        {"objective": "tdft", "teacher_guidance": -1.0},
    ):
        with engine(train="full", loss="l2", **changes) as made:
            made.generator.manual_seed(1)
            noised = next(noised_looks(made.source, made.backbone, made.recipe, made.generator))
            if changes["objective"] == "tdft":  # x_t is advanced by w = −1 in both; only the target differs
                null = torch.full_like(noised.look.prompt, NULL)
                weak, prompted = (
                    made.denoisers.teacher(noised.look.x_t, noised.look.t, prompt).x0
                    for prompt in (null, noised.look.prompt)
                )
                target = weak + (1 - 3.5) * (prompted - weak)
                noised.look.weak.x0.copy_(target)
            update_loss(noised, made.denoisers, made.recipe).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in made.student.parameters.values()]))
    torch.testing.assert_close(gradients[0], 0.75 * gradients[1], rtol=1e-4, atol=1e-6)
    assert gradients[0].norm() > 0.01


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


def test_full_drift_is_the_distance_from_the_base():
    with engine(train="full") as made:
        update = list(made.updates())[-1]
        delta = made.student.delta()
        now = dict(made.student.parameters)
    base = dict(ToyBackbone().denoiser.named_parameters())
    squares = sum(float((now[name] - base[name]).detach().square().sum()) for name in base)
    size = sum(float(p.detach().square().sum()) for p in base.values())
    assert update.drift == pytest.approx((squares / size) ** 0.5, rel=1e-5)
    for name, offset in delta.items():
        torch.testing.assert_close(offset.float(), (now[name] - base[name]).detach(), rtol=1e-2, atol=1e-6)


def test_an_update_draws_from_its_seed_rank_and_number_alone():
    losses = []
    for disturbed in (False, True):
        with engine() as made:
            for update in made.updates():
                losses.append(update.loss)
                if disturbed:
                    torch.rand(7, generator=made.generator)
    assert losses[:4] == losses[4:]


def test_prompt_dropout_gives_the_null_prompt_to_the_student_only():
    for share, low, high in ((0.0, 0, 0), (0.5, 40, 120), (1.0, 160, 160)):
        spy = Spy()
        with engine(spy, student_prompt_dropout=share, teacher_guidance=0.0, steps=20) as made:
            spy.seen.clear()
            list(made.updates())
        nulls = {flag: sum(p.count(NULL) for g, p in spy.seen if g is flag) for flag in (True, False)}
        assert low <= nulls[True] <= high
        assert nulls[False] == 0


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
        before = made.student.collect(True)
        bad = [next(updates), next(updates)]
        after = made.student.collect(True)
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


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"engine": "zero2"}, "engine zero2"),
        ({"mixed_precision": "fp16"}, "fp16 needs a CUDA GPU"),
        ({"optimizer": "adamw8bit"}, "pip install bitsandbytes"),
        ({"trackers": ["trackio"]}, "pip install trackio"),
    ],
)
def test_what_cannot_run_here_is_said_before_anything_starts(changes, word, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=word):
        make_accelerator(toy_recipe(**changes))


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
