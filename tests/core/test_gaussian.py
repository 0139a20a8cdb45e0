"""Where the best denoiser is known, every claim has an exact answer: DDIM, Tweedie and the optimum of TDFT."""

from itertools import pairwise

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.distributions import MultivariateNormal

from selfnpo_core import (
    NULL,
    NoiseSchedule,
    TrajectoryPool,
    ddim_step,
    guided_estimate,
    renoise,
    tdft_loss,
    trajectory,
)
from selfnpo_core.testing import GaussianWorld

SCHEDULERS = {
    "vp": DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "zero terminal": CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    "flow": FlowMatchEulerDiscreteScheduler(),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("prompt", [0, 2, NULL])
def test_the_best_estimate_is_the_posterior_mean_and_tweedies(kind: str, prompt: int) -> None:
    world, schedule = GaussianWorld.random((2, 3)), NoiseSchedule.from_scheduler(SCHEDULERS[kind])
    x_t = normal(4, 2, 3).requires_grad_()
    level = schedule.at(torch.tensor([10, 300, 600, 950]), like=x_t)
    estimate = world.estimate(x_t, level, torch.full((4,), prompt))
    covariance, mean = world.covariance(prompt), world.mean[prompt].flatten()
    for row in range(4):
        alpha, sigma = level.alpha[row].item(), level.sigma[row].item()
        x = x_t[row].flatten()
        marginal = alpha**2 * covariance + sigma**2 * torch.eye(6, dtype=torch.float64)
        posterior = mean + alpha * covariance @ torch.linalg.solve(marginal, x - alpha * mean)
        torch.testing.assert_close(estimate.x0[row].flatten(), posterior)
        (score,) = torch.autograd.grad(MultivariateNormal(alpha * mean, marginal).log_prob(x), x)
        torch.testing.assert_close(estimate.x0[row].flatten(), (x + sigma**2 * score) / alpha)
        torch.testing.assert_close(estimate.eps[row].flatten(), -sigma * score)


@pytest.mark.parametrize("prompt", [1, NULL])
def test_samples_have_the_worlds_mean_and_covariance(prompt: int) -> None:
    world = GaussianWorld.random((3,))
    x0 = world.sample(torch.full((40000,), prompt), torch.Generator().manual_seed(0))
    torch.testing.assert_close(x0.mean(0), world.mean[prompt], rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(x0.T), world.covariance(prompt), rtol=0, atol=0.03)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_ddim_converges_to_the_probability_flow_with_order_one(kind: str) -> None:
    world, schedule = GaussianWorld.random((2, 3)), NoiseSchedule.from_scheduler(SCHEDULERS[kind])
    x, prompt = normal(6, 2, 3), torch.tensor([0, 1, 2, NULL, 0, 1])
    first, last = schedule.max_timestep - 199, 100
    errors = []
    for stride in (20, 10, 5):
        grid = torch.arange(first, last - 1, -stride)
        *_, end = trajectory(world.denoiser(schedule), schedule, grid, x, prompt)
        level, level_next = (schedule.at(t.expand(6), like=x) for t in (grid[0], grid[-1]))
        exact = world.flow(x, level, level_next, prompt)
        errors.append((end.x_t - exact).norm().item() / exact.norm().item())
    assert errors[-1] < 0.02
    orders = [torch.tensor(a / b).log2().item() for a, b in pairwise(errors)]
    assert orders == pytest.approx([1.0, 1.0], abs=0.1)


def test_the_probability_flow_carries_noise_to_data() -> None:
    """From pure noise at zero terminal SNR to clean data: the mean and covariance of the prompt."""
    world, schedule = GaussianWorld.random((3,)), NoiseSchedule.from_scheduler(SCHEDULERS["zero terminal"])
    x, prompt = normal(40000, 3), torch.full((40000,), 2)
    noise, clean = (schedule.at(torch.full((40000,), t), like=x) for t in (999, -1))
    x0 = world.flow(x, noise, clean, prompt)
    torch.testing.assert_close(x0.mean(0), world.mean[2], rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(x0.T), world.covariance(2), rtol=0, atol=0.03)
    torch.testing.assert_close(world.flow(x0, clean, noise, prompt), x)


def test_weak_guidance_of_equal_variances_is_a_shifted_world() -> None:
    world = GaussianWorld.random((2, 3), same_variance=True)
    schedule, w = NoiseSchedule.from_scheduler(SCHEDULERS["vp"]), -3.0
    shifted = GaussianWorld(world.mean + w * (world.mean - world.mean[NULL]), world.basis, world.variance)
    x_t, t, prompt = normal(3, 2, 3), torch.tensor([100, 500, 900]), torch.tensor([0, 1, 2])
    guided = guided_estimate(world.denoiser(schedule), x_t, t, prompt, w)
    expected = shifted.denoiser(schedule)(x_t, t, prompt)
    torch.testing.assert_close(guided.x0, expected.x0)
    # the noise's own part does not depend on guidance, so it is the shifted world's too
    torch.testing.assert_close(guided.eps, expected.eps)


def streamed(world: GaussianWorld, schedule: NoiseSchedule, w: float) -> tuple[Tensor, ...]:
    """x_s, s, prompt and the teacher's targets, as a pool streams them from pure noise."""
    g = torch.Generator().manual_seed(0)
    denoise = world.denoiser(schedule)
    pool = TrajectoryPool(20000, (3,), schedule.grid(100), 2, g, dtype=torch.float64)

    def estimate(x_t: Tensor, t: Tensor, prompt: Tensor):
        return guided_estimate(denoise, x_t, t, prompt, w)

    pool.stagger(lambda x_t, t, t_next, p: ddim_step(estimate(x_t, t, p), schedule.at(t_next, like=x_t)), 20000)
    drawn = []
    for _ in range(3):
        batch = pool.draw(10000)
        teacher = estimate(batch.x_t, batch.t, batch.prompt)
        s = schedule.draw_noisier(batch.t, g)
        eps = torch.randn(batch.x_t.shape, generator=g, dtype=torch.float64)
        x_s = renoise(batch.x_t, eps, schedule.at(batch.t, like=eps), schedule.at(s, like=eps))
        drawn.append((x_s, s, batch.prompt, teacher.x0))
        pool.put_back(batch, ddim_step(teacher, schedule.at(batch.t_next, like=eps)))
    return tuple(torch.cat(column) for column in zip(*drawn, strict=True))


@pytest.mark.parametrize("kind", ["zero terminal", "flow"])
@pytest.mark.parametrize("w", [0.0, -1.0, -3.0])
def test_the_optimum_of_tdft_is_the_teachers_own_weak_distribution(kind: str, w: float) -> None:
    """Under ½d² a student fitted to streamed targets becomes the best denoiser of what the teacher would sample.

    The student starts as the prompt's own world, with mean and variances free. w = 0 leaves it there, w = −1
    makes it the null prompt's world, w = −3 (equal variances) a world whose mean lies beyond that.
    """
    world = GaussianWorld.random((3,), num_prompts=2, same_variance=w == -3)
    schedule = NoiseSchedule.from_scheduler(SCHEDULERS[kind])
    x_s, s, prompt, target = streamed(world, schedule, w)
    mean, log_variance = world.mean.clone().requires_grad_(), world.variance.log().requires_grad_()
    optimizer = torch.optim.LBFGS([mean, log_variance], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        student = GaussianWorld(mean, world.basis, log_variance.exp())
        value = tdft_loss(student.estimate(x_s, schedule.at(s, like=x_s), prompt).x0, target, "l2")
        value.backward()
        return value

    start = loss().item()
    optimizer.step(loss)
    weak_mean = world.mean + w * (world.mean - world.mean[NULL])
    weak_variance = world.variance[NULL].expand(2, 3) if w == -1 else world.variance[:2]
    torch.testing.assert_close(mean[:2], weak_mean[:2], rtol=0, atol=0.05)
    ratio = log_variance[:2].exp() / weak_variance
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=0.1)  # each: 4 standard errors
    assert ratio.mean().item() == pytest.approx(1, abs=0.04)  # together: these, and the grid's own 2 %
    if w != 0:
        assert loss().item() < 0.9 * start
        assert (weak_mean - world.mean)[:2].abs().max() > 0.5  # far from where it began
