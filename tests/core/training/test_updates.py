"""What an update does: forwards, what the student sees, and its loss; and the same for every objective."""

import itertools

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler
from tests.core.training.engines import Spy, engine, fixed_loss, fixed_parts
from tests.core.training.toy import SCHEDULER, ToyBackbone, toy_recipe

from selfnpo_core import NULL, InputError, NoiseSchedule
from selfnpo_core.training.updates import check_window, noised_looks, reference_rows, teacher_rows, update_loss


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
        ("endpoint", "tdft"),
    ],
)
@pytest.mark.parametrize(("w", "advance"), [(-1.0, None), (-2.0, None), (-1.0, 0.0), (-2.0, -1.0), (0.0, 1.0)])
def test_the_table_of_forwards_is_what_happens(rollout, objective, w, advance):
    if rollout == "full" and advance is not None:
        return
    spy = Spy()
    changes = {"batch_size": 4, "steps": 30, "rollout": rollout, "objective": objective}
    changes |= {"teacher_guidance": w, "advance_guidance": advance}
    if rollout == "endpoint":
        changes |= {"rollout": "pool", "pool_target": "endpoint"}
    with engine(spy, **changes) as made:
        spy.seen.clear()
        updates = list(made.updates())
    count = 4 * len(updates)
    expected = teacher_rows(made.recipe) + reference_rows(made.recipe)
    spread = 0.2 if rollout == "truncated" else 0  # there the walks are of random length
    assert spy.rows(False) / count == pytest.approx(expected, rel=spread)
    assert spy.rows(True) == count
    assert sum(u.teacher_rows + u.base_rows for u in updates) == spy.rows(False)


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
        train=train, steps=80, batch_size=16, ema_decay=1.0, weight_decay=0.0, targets="all", **changes
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


def test_the_student_sees_x_t_with_more_noise():
    """x_s = r·x_t + sqrt(σ_s² − r²·σ_t²)·ε with standard normal ε, r = α_s/α_t, and s beyond t."""
    with engine(batch_size=200, pool_size=400) as made:
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
def test_batches_leave_out_the_noisiest_timestep_and_keep_their_size(objective):
    """Zero terminal SNR, the grid's first point the noisiest timestep: from there trajectories are only advanced."""
    backbone = ToyBackbone()
    scheduler = CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    backbone.schedule, backbone.prediction_type = NoiseSchedule.from_scheduler(scheduler), "v_prediction"
    seen: list[int] = []
    with engine(backbone, objective=objective, batch_size=20, steps=50, train="full", learning_rate=0.0) as made:
        assert int(backbone.schedule.grid(5)[0]) == 999
        (noised,) = fixed_parts(made)
        assert len(noised.look.t) == 20
        assert (noised.s > noised.look.t).all()
        loss = update_loss(noised, made.denoisers, made.recipe)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in made.student.parameters.values())
        assert any(p.grad.any() for p in made.student.parameters.values())
        updates = []
        for update in made.updates():
            updates.append(update)
            state = made.source.state_dict()
            seen += state["index"].tolist()
            assert (state["x"].isfinite()).all()
        asked = sum(update.teacher_rows for update in updates) / (20 * len(updates))
        assert asked == pytest.approx(teacher_rows(made.recipe, first=1), rel=0.03)
    assert {update.student_rows for update in updates} == {20}
    counts = torch.tensor(seen).bincount()
    assert counts[0] == 0
    assert (counts[1:] / len(seen) - 0.25).abs().max() < 0.08


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


@pytest.mark.parametrize("weighting", ["none", "snr"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_denoising_asks_the_student_for_what_a_finished_sample_was_noised_with(kind, weighting):
    backbone = ToyBackbone()
    backbone.prediction_type = kind
    with engine(backbone, rollout="full", loss="denoising", loss_weighting=weighting, batch_size=40) as made:
        (noised,) = fixed_parts(made)
        found = update_loss(noised, made.denoisers, made.recipe)
        output, x0 = backbone.predict(noised.x_s, noised.s, noised.prompt), noised.look.x_t
    scheduler = DDIMScheduler.from_config(SCHEDULER)
    velocity = scheduler.get_velocity(x0, noised.noise, noised.s)
    assert set(noised.look.t.tolist()) == {-1}
    torch.testing.assert_close(noised.x_s, scheduler.add_noise(x0, noised.noise, noised.s), rtol=1e-5, atol=1e-5)
    error = output - (velocity if kind == "v_prediction" else noised.noise)
    snr = (1 / (1 / scheduler.alphas_cumprod[noised.s] - 1))[:, None, None, None]
    weight = (1 / (snr + 0.05)).clamp(min=0.5) * (snr / (1 + snr) if kind == "v_prediction" else 1)
    expected = (error**2 if weighting == "none" else weight * error**2).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_prompt_dropout_gives_the_null_prompt_to_the_student_only():
    for share, low, high in ((0.0, 0, 0), (0.5, 40, 120), (1.0, 160, 160)):
        spy = Spy()
        with engine(spy, student_prompt_dropout=share, teacher_guidance=0.0, steps=20) as made:
            spy.seen.clear()
            list(made.updates())
        nulls = {flag: sum(p.count(NULL) for g, p in spy.seen if g is flag) for flag in (True, False)}
        assert low <= nulls[True] <= high
        assert nulls[False] == 0


class Windowed(ToyBackbone):
    """Its clips are its samples, of which dimension 1 are the frames."""

    window_step = 2

    def __init__(self):
        super().__init__()
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def predict_window(self, x_t, t, prompt, *, first):
        self.asked.append((first, tuple(x_t.shape[1:])))
        whole = torch.zeros(len(x_t), *self.latent_shape)
        whole[:, first : first + x_t.shape[1]] = x_t
        return self.predict(whole, t, prompt)[:, first : first + x_t.shape[1]]


def test_the_student_of_a_video_family_is_asked_about_windows():
    backbone = Windowed()
    with engine(backbone, chunk_frames=2, steps=12, batch_size=2, grad_accumulation=2) as made:
        assert list(made.updates())[-1].drift > 0
    assert {shape for _, shape in backbone.asked} == {(2, 4, 4)}
    assert {first for first, _ in backbone.asked} == {0, 2}
    assert len(backbone.asked) == 12 * 2


@pytest.mark.parametrize(
    ("backbone", "frames", "words"),
    [
        (ToyBackbone, 2, "toy/base makes pictures"),
        (Windowed, 3, "windows are multiples of 2: choose 2 to 4"),
        (Windowed, 6, "a clip has 4 latent frames"),
    ],
)
def test_windows_that_a_model_has_not_are_refused(backbone, frames, words):
    with pytest.raises(InputError, match=words):
        check_window(backbone(), toy_recipe(chunk_frames=frames))
