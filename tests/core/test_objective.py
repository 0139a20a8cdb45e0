"""Objectives: their values, their gradients, and the identities between them."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from selfnpo_core import (
    CLEAN,
    Estimate,
    InputError,
    NoiseLevel,
    NoiseSchedule,
    add_noise,
    denoising_loss,
    diffusion_dpo_loss,
    gradient_reversal_loss,
    guided_estimate,
    npo_dpo_loss,
    renoise,
    tdft_loss,
    to_estimate,
)
from selfnpo_core.objective import equivalent_teacher_guidance, pseudo_huber, squared
from selfnpo_core.testing import GaussianWorld


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, student: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(student), student)
    return result


def test_rho() -> None:
    d = torch.tensor([0.0, 3e-3, -4.0], dtype=torch.float64)
    assert squared(d).tolist() == pytest.approx([0, 4.5e-6, 8])
    assert pseudo_huber(d, c=4e-3).tolist() == pytest.approx([0, 1e-3, math.sqrt(16 + 1.6e-5) - 4e-3])
    assert pseudo_huber(d).tolist() == pseudo_huber(d, c=1e-3).tolist()


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 4, 6, 5)], ids=["image", "video"])
def test_tdft_is_the_mean_of_rho_and_pulls_towards_the_target(shape: tuple[int, ...]) -> None:
    student, target = normal(2, *shape), normal(2, *shape, seed=1)
    d = student - target
    assert tdft_loss(student, target, "l2").item() == pytest.approx(d.square().mean().item() / 2)
    assert tdft_loss(student, target).item() == pytest.approx(((d**2 + 1e-6).sqrt() - 1e-3).mean().item())
    torch.testing.assert_close(gradient(lambda x: tdft_loss(x, target, "l2"), student), d / d.numel())
    huber = gradient(lambda x: tdft_loss(x, target, "huber"), student)
    torch.testing.assert_close(huber, d / (d**2 + 1e-6).sqrt() / d.numel())
    assert tdft_loss(target, target).item() == 0


def test_targets_carry_no_gradient() -> None:
    student, a, b, reference = (normal(2, 3, seed=i).requires_grad_() for i in range(4))
    for loss in (
        tdft_loss(student, a),
        gradient_reversal_loss(student, a, b, 0.25),
        npo_dpo_loss(student, reference, a, b, 10.0),
    ):
        loss.backward()
        assert student.grad is not None
        assert a.grad is b.grad is reference.grad is None


def test_gradient_reversal_is_the_identity_forwards() -> None:
    student, weak, strong = (normal(2, 3, seed=i) for i in range(3))
    value = gradient_reversal_loss(student, weak, strong, 0.4, "l2")
    assert value.item() == pytest.approx((tdft_loss(student, weak, "l2") + tdft_loss(student, strong, "l2")).item())


@pytest.mark.parametrize("rho", ["l2", "huber"])
def test_gradient_reversal_attracts_to_weak_and_repels_from_strong(rho: str) -> None:
    student, weak, strong = (normal(2, 3, seed=i) for i in range(3))
    towards_weak = gradient(lambda x: tdft_loss(x, weak, rho), student)
    towards_strong = gradient(lambda x: tdft_loss(x, strong, rho), student)
    both = gradient(lambda x: gradient_reversal_loss(x, weak, strong, 0.4, rho), student)
    torch.testing.assert_close(both, towards_weak - 0.4 * towards_strong)
    none = gradient(lambda x: gradient_reversal_loss(x, weak, strong, 0.0, rho), student)
    torch.testing.assert_close(none, towards_weak)


WEAK_STRONG_LAMBDA = [(-1.0, 6.5, 0.25), (0.0, 3.0, 0.5), (-2.0, 1.5, 0.9), (-1.0, 6.5, 0.0)]


def parameter_gradients(rho: str, weak_w: float, strong_w: float, lam: float) -> tuple[Tensor, Tensor]:
    """Of a student x̂0 = Ax_s + b: gradient reversal's, and (1 − λ) times TDFT's at the equivalent guidance."""
    world = GaussianWorld.random((3,), num_prompts=2)
    schedule = NoiseSchedule.from_scheduler(DDIMScheduler())
    prompt, t = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([20, 200, 500, 700, 900])
    x_t = normal(5, 3)
    level_t, level_s = schedule.at(t, like=x_t), schedule.at(t + 50, like=x_t)
    x_s = renoise(x_t, normal(5, 3, seed=1), level_t, level_s)
    weights = normal(3, 4, seed=2).requires_grad_()

    def student() -> Tensor:
        return x_s @ weights[:, :3].T + weights[:, 3]

    def target(w: float) -> Tensor:
        return guided_estimate(world.denoiser(schedule), x_t, t, prompt, w).x0

    reversal = gradient_reversal_loss(student(), target(weak_w), target(strong_w), lam, rho)
    tdft = tdft_loss(student(), target(equivalent_teacher_guidance(weak_w, strong_w, lam)), rho)
    (of_reversal,) = torch.autograd.grad(reversal, weights)
    (of_tdft,) = torch.autograd.grad(tdft, weights)
    return of_reversal, (1 - lam) * of_tdft


@pytest.mark.parametrize(("weak", "strong", "lam"), WEAK_STRONG_LAMBDA)
def test_gradient_reversal_is_tdft_at_another_guidance(weak: float, strong: float, lam: float) -> None:
    of_reversal, of_tdft = parameter_gradients("l2", weak, strong, lam)
    assert of_tdft.abs().max() > 0.01
    torch.testing.assert_close(of_reversal, of_tdft, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("weak", "strong", "lam"), WEAK_STRONG_LAMBDA[:3])
def test_under_pseudo_huber_it_is_not(weak: float, strong: float, lam: float) -> None:
    of_reversal, of_tdft = parameter_gradients("huber", weak, strong, lam)
    assert (of_reversal - of_tdft).abs().max() > 0.05 * of_tdft.abs().max()


def test_the_example_of_the_equivalence() -> None:
    assert equivalent_teacher_guidance(-1.0, 6.5, 0.25) == pytest.approx(-3.5)
    assert equivalent_teacher_guidance(-1.0, 6.5, 0.0) == -1


@pytest.mark.parametrize("lam", [1.0, 1.5, -0.1, math.nan])
def test_unbounded_reversal_is_refused(lam: float) -> None:
    x = normal(1, 2)
    with pytest.raises(InputError, match="reversal_lambda"):
        gradient_reversal_loss(x, x, x, lam)
    with pytest.raises(InputError, match="reversal_lambda"):
        equivalent_teacher_guidance(-1, 5, lam)


def errors(*values: list[float]) -> dict[str, Tensor]:
    names = ("winner_error", "loser_error", "winner_reference_error", "loser_reference_error")
    return dict(zip(names, map(torch.tensor, values), strict=True))


def test_dpo_value() -> None:
    """Row 0: winner better by 0.2, loser worse by 0.1, margin 0.3; row 1: winner worse by 0.1, margin −0.1."""
    loss = diffusion_dpo_loss(**errors([0.3, 0.6], [0.8, 0.5], [0.5, 0.5], [0.7, 0.5]), beta=5.0)
    expected = sum(math.log(1 + math.exp(-5.0 * margin)) for margin in (0.3, -0.1)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_dpo_with_the_pair_swapped_has_the_negated_margin() -> None:
    def margin(loss: Tensor, beta: float) -> float:
        return -math.log(math.expm1(loss.item())) / beta  # the inverse of −log σ(βm)

    e_w, e_l, ref_w, ref_l = [0.3], [0.8], [0.45], [0.72]
    loss = diffusion_dpo_loss(**errors(e_w, e_l, ref_w, ref_l), beta=3.0)
    swapped = diffusion_dpo_loss(**errors(e_l, e_w, ref_l, ref_w), beta=3.0)
    assert margin(loss, 3.0) == pytest.approx(0.23, abs=1e-5)
    assert margin(swapped, 3.0) == pytest.approx(-0.23, abs=1e-5)


def test_npo_dpo_is_diffusion_dpo_in_which_weak_wins() -> None:
    student, reference, weak, strong = (normal(3, 4, 2, 2, seed=i) for i in range(4))
    e = {
        (x, y): (a - b).square().mean((1, 2, 3)) / 2
        for x, a in (("s", student), ("r", reference))
        for y, b in (("weak", weak), ("strong", strong))
    }
    margin = (e["r", "weak"] - e["s", "weak"]) - (e["r", "strong"] - e["s", "strong"])
    expected = torch.log1p(torch.exp(-20.0 * margin)).mean()
    torch.testing.assert_close(npo_dpo_loss(student, reference, weak, strong, 20.0, "l2"), expected)


@pytest.mark.parametrize("rho", ["l2", "huber"])
def test_dpo_at_the_reference_is_log_two_and_goes_from_strong_to_weak(rho: str) -> None:
    student, weak, strong = (normal(3, 4, seed=i) for i in range(3))
    loss = npo_dpo_loss(student, student, weak, strong, 8.0, rho)
    assert loss.item() == pytest.approx(math.log(2))
    step = -gradient(lambda x: npo_dpo_loss(x, student, weak, strong, 8.0, rho), student)
    towards_weak = -gradient(lambda x: tdft_loss(x, weak, rho), student)
    away_from_strong = gradient(lambda x: tdft_loss(x, strong, rho), student)
    torch.testing.assert_close(step, 4.0 * (towards_weak + away_from_strong))  # β·σ(0) times both


def test_dpo_stops_pushing_once_weak_is_reached() -> None:
    """Bounded: the further the student has moved to the weak side, the smaller the gradient."""
    reference, weak, strong = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    sizes = [
        gradient(lambda x: npo_dpo_loss(x, reference, weak, strong, 30.0, "l2"), share * weak).norm()
        for share in (0.0, 0.3, 0.6, 1.0)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-3 * sizes[0]


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(InputError, match="'mse' is unknown: use one of huber, l2"):
        tdft_loss(normal(1, 2), normal(1, 2), "mse")


def example_of_diffusers(scheduler, kind: str, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(noisy sample, target) as diffusers' training examples make them."""
    if kind == "flow":
        sigma = (t / scheduler.config.num_train_timesteps).reshape(-1, *(1,) * (x0.ndim - 1))
        return (1 - sigma) * x0 + sigma * noise, noise - x0
    target = {"epsilon": noise, "sample": x0}
    noisy = scheduler.add_noise(x0, noise, t)
    return noisy, scheduler.get_velocity(x0, noise, t) if kind == "v_prediction" else target[kind]


SPACES = {
    "epsilon": (DDIMScheduler(beta_schedule="scaled_linear"), "epsilon", [0, 1, 400, 999]),
    "sample": (DDIMScheduler(), "sample", [0, 1, 400, 999]),
    "v": (DDIMScheduler(), "v_prediction", [0, 1, 400, 999]),
    "v, zero terminal SNR": (CogVideoXDDIMScheduler(rescale_betas_zero_snr=True), "v_prediction", [0, 1, 400, 999]),
    "flow": (FlowMatchEulerDiscreteScheduler(), "flow", [0.5, 10.0, 400.0, 1000.0]),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 4, 6, 5)], ids=["image", "video"])
def test_denoising_is_the_loss_of_diffusers_training_examples(space: str, shape: tuple[int, ...]) -> None:
    scheduler, kind, timesteps = SPACES[space]
    table = getattr(scheduler, "alphas_cumprod", None)  # theirs, which they calculate in float32
    schedule, t = NoiseSchedule(table, scheduler.config), torch.tensor(timesteps)
    x0, noise, output = (normal(len(t), *shape, seed=i).float() for i in range(3))
    clean, level = schedule.at(torch.full_like(t, CLEAN), like=x0), schedule.at(t, like=x0)
    x_s = renoise(x0, noise, clean, level)
    noisy, target = example_of_diffusers(scheduler, kind, x0, noise, t)
    torch.testing.assert_close(x_s, noisy, rtol=0, atol=1e-6)

    def ours(output: Tensor) -> Tensor:
        return denoising_loss(to_estimate(output, x_s, level, kind), Estimate(x0, noise), x_s, level, kind)

    assert ours(output).item() == pytest.approx(F.mse_loss(output, target).item(), abs=1e-6)
    theirs = gradient(lambda output: F.mse_loss(output, target), output)
    torch.testing.assert_close(gradient(ours, output), theirs, rtol=1e-5, atol=1e-6 / output.numel())


def test_the_weight_of_the_noise_s_error_by_snr() -> None:
    snr = torch.tensor([0.0, 0.01, 1.0, 1.95, 10.0, 1e6], dtype=torch.float64)
    level = NoiseLevel((snr / (1 + snr)).sqrt()[:, None], (1 / (1 + snr)).sqrt()[:, None])
    x0, noise = normal(6, 5), normal(6, 5, seed=1)
    x_s = add_noise(x0, noise, level)
    wrong = noise + normal(6, 5, seed=2)
    weight = torch.tensor([20.0, 1 / 0.06, 1 / 1.05, 0.5, 0.5, 0.5], dtype=torch.float64)
    student = Estimate((x_s - level.sigma * wrong) / level.alpha, wrong)
    for kind in ("epsilon", "v_prediction", "flow"):
        loss = denoising_loss(student, Estimate(x0, noise), x_s, level, kind, "snr")
        assert loss.item() == pytest.approx(float((weight[:, None] * (wrong - noise) ** 2).mean()))
    with pytest.raises(InputError, match="'min_snr' is unknown: use none or snr"):
        denoising_loss(student, Estimate(x0, noise), x_s, level, "epsilon", "min_snr")  # type: ignore[arg-type]


@pytest.mark.parametrize("weighting", ["none", "snr"])
@pytest.mark.parametrize("space", SPACES)
def test_the_optimal_denoiser_has_the_least_denoising_loss(space: str, weighting: str) -> None:
    """Scaled or moved by ±3 %, it is worse; so it is where the sample or its noise had another sign."""
    scheduler, kind, timesteps = SPACES[space]
    world, schedule = GaussianWorld.random((3,), num_prompts=2), NoiseSchedule.from_scheduler(scheduler)
    generator, rows = torch.Generator().manual_seed(7), 40_000
    t, prompt = torch.tensor(timesteps)[1:3].repeat(rows // 2), torch.arange(rows) // 2 % 3 - 1
    x0, noise = world.sample(prompt, generator), normal(rows, 3, seed=8)
    level = schedule.at(t, like=x0)
    x_s, truth = add_noise(x0, noise, level), Estimate(x0, noise)
    best = world.estimate(x_s, level, prompt)

    def loss(student: Estimate, truth: Estimate = truth) -> float:
        return denoising_loss(student, truth, x_s, level, kind, weighting).item()  # type: ignore[arg-type]

    for factor in (0.97, 1.03):
        assert loss(Estimate(factor * best.x0, factor * best.eps)) > loss(best)
    for change in (-0.03, 0.03):  # of x0, and of the noise that goes with it
        assert loss(Estimate(best.x0 + change, best.eps - level.alpha / level.sigma * change)) > loss(best)
    flipped = loss(best, Estimate(-x0, noise)) + loss(best, Estimate(x0, -noise))
    assert flipped > 2.5 * loss(best)
