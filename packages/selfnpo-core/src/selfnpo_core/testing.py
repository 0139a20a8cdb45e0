"""A world whose best denoiser is known: Gaussian data. For tests, of this package and of those above it.

Prompt p has data N(mu_p, U·diag(v_p)·Uᵀ). At noise level (alpha, sigma), with y = Uᵀ(x_t − alpha·mu) and the
marginal variance m = alpha²·v + sigma²:

    E[x0 | x_t]  = mu + U·(alpha·v/m·y)       E[eps | x_t] = U·(sigma/m·y)
    probability flow from level 1 to 2:  x = alpha_2·mu + U·(sqrt(m_2/m_1)·y)

(2010.02502 and 2011.13456: the limit of DDIM for ever finer grids is that flow.) Where all variances are
equal, weak guidance w is again such a world, with mean mu_p + w·(mu_p − mu_null).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfnpo_core.guidance import Denoise
from selfnpo_core.prediction import Estimate
from selfnpo_core.schedule import NoiseLevel, NoiseSchedule


@dataclass(frozen=True)
class GaussianWorld:
    """mean: (P + 1, *S), the last row being the null prompt's; basis U: (D, D); variance: (P + 1, D)."""

    mean: Tensor
    basis: Tensor
    variance: Tensor

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...],
        num_prompts: int = 3,
        *,
        seed: int = 0,
        same_variance: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> "GaussianWorld":
        """Unit normal means, a random rotation, variances in [0.1, 1.1]: one set a prompt or one for all."""
        generator, d = torch.Generator().manual_seed(seed), math.prod(shape)
        mean = torch.randn((num_prompts + 1, *shape), generator=generator, dtype=dtype)
        basis = torch.linalg.qr(torch.randn((d, d), generator=generator, dtype=dtype)).Q
        sets = 1 if same_variance else num_prompts + 1
        variance = 0.1 + torch.rand((sets, d), generator=generator, dtype=dtype)
        return cls(mean, basis, variance.expand(num_prompts + 1, d))

    def covariance(self, prompt: int) -> Tensor:
        """(D, D)."""
        return self.basis @ self.variance[prompt].diag() @ self.basis.T

    def sample(self, prompt: Tensor, generator: torch.Generator) -> Tensor:
        """Clean data x0: (B, *S) for prompt: (B,)."""
        shape = (len(prompt), self.variance.shape[1])
        z = torch.randn(shape, generator=generator, dtype=self.mean.dtype)
        return self.mean[prompt] + self._out(self.variance[prompt].sqrt() * z)

    def estimate(self, x_t: Tensor, level: NoiseLevel, prompt: Tensor) -> Estimate:
        """The optimal estimate: both posterior means. Finite also where alpha or sigma is zero."""
        alpha, sigma, variance = level.alpha.flatten(1), level.sigma.flatten(1), self.variance[prompt]
        scaled = self._in(x_t - level.alpha * self.mean[prompt]) / (alpha**2 * variance + sigma**2)
        return Estimate(self.mean[prompt] + self._out(alpha * variance * scaled), self._out(sigma * scaled))

    def denoiser(self, schedule: NoiseSchedule) -> Denoise:
        """The optimal denoiser on a schedule."""

        def denoise(x_t: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
            return self.estimate(x_t, schedule.at(t, like=x_t), prompt)

        return denoise

    def flow(self, x: Tensor, level: NoiseLevel, level_next: NoiseLevel, prompt: Tensor) -> Tensor:
        """Where the probability flow takes x: (B, *S) from `level` to `level_next`, exactly."""
        now, then = (
            lv.alpha.flatten(1) ** 2 * self.variance[prompt] + lv.sigma.flatten(1) ** 2 for lv in (level, level_next)
        )
        y = self._in(x - level.alpha * self.mean[prompt])
        return level_next.alpha * self.mean[prompt] + self._out((then / now).sqrt() * y)

    def _in(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.basis

    def _out(self, y: Tensor) -> Tensor:
        return (y @ self.basis.T).reshape(-1, *self.mean.shape[1:])


@dataclass
class CountingDenoiser:
    """Wraps a denoiser; notes the rows and the prompts of each forward."""

    denoise: Denoise
    rows: list[int] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
        self.rows.append(len(x_t))
        self.prompts.append(prompt.tolist())
        return self.denoise(x_t, t, prompt)
