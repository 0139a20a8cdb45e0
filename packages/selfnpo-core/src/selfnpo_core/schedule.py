"""Noise schedules: how much signal and how much noise a sample holds at timestep t.

    x_t = alpha_t · x0 + sigma_t · eps

Variance preserving (DDPM 2006.11239; Stable Diffusion, CogVideoX): alpha² + sigma² = 1, with alpha² =
ᾱ_t the scheduler's `alphas_cumprod`. CogVideoX (2408.06072) shifts the signal-to-noise ratio and
rescales it to be zero at the last timestep (2305.08891), so alpha_T = 0. Rectified flow (2210.02747):
alpha = 1 − sigma, sigma = t / T.

Timesteps are in the scheduler's own units, `t: (B,)`; fractional ones are interpolated. `CLEAN` is data
without noise on every schedule. All is built from the scheduler's configuration, so no scheduler is imported.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from selfnpo_core.errors import InputError

Sigma = TypeVar("Sigma", float, Tensor)

CLEAN = -1.0
"""The timestep of clean data: alpha = 1, sigma = 0."""


@dataclass(frozen=True)
class NoiseLevel:
    """Signal and noise at one timestep a row; alpha, sigma: (B, 1, …), to broadcast over x_t: (B, *S)."""

    alpha: Tensor
    sigma: Tensor


class NoiseSchedule:
    """A map from timestep to `NoiseLevel`, and the denoising grid that belongs to it.

    `alphas_cumprod: (T,)` makes it variance preserving, `None` makes it rectified flow. `config` holds the
    scheduler's other settings, of which only those of the grid are read.
    """

    def __init__(self, alphas_cumprod: Tensor | None, config: Mapping[str, Any], mu: float | None = None):
        self._config, self._mu = dict(config), mu
        self._steps = int(self._config.get("num_train_timesteps", 1000))
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.alphas_cumprod = alphas_cumprod

    @classmethod
    def from_scheduler(cls, scheduler: Any, mu: float | None = None) -> "NoiseSchedule":
        """From a diffusers scheduler, or from its `config` (what `scheduler_config.json` holds).

        mu: for those that shift by resolution, that of the resolution in use.
        """
        config: Mapping[str, Any] = getattr(scheduler, "config", scheduler)
        if not isinstance(config, Mapping):
            raise InputError(f"{type(scheduler).__name__} is no diffusers scheduler: pass a scheduler or its config")
        if _describes_flow(scheduler, config):
            return cls(None, config, mu)
        if config.get("beta_schedule") is None and config.get("trained_betas") is None:
            name = config.get("_class_name", type(scheduler).__name__)
            raise InputError(f"{name} has no beta_schedule: use a DDPM, DDIM, Euler, DPM or flow-matching scheduler")
        return cls(_alphas_cumprod(config), config)

    @property
    def is_flow(self) -> bool:
        return self.alphas_cumprod is None

    @property
    def max_timestep(self) -> float:
        """The noisiest timestep."""
        return float(self._steps if self.is_flow else self._steps - 1)

    @property
    def clean(self) -> Tensor:
        """The timestep of clean data: (), 0 for flow, whose networks know of nothing below, else `CLEAN`."""
        return torch.tensor(0.0) if self.is_flow else torch.tensor(int(CLEAN))

    def first_trained(self, grid: Tensor) -> int:
        """The first index of a descending grid: (n,) that something is noisier than: 1 if it begins at the end."""
        return int(float(grid[0]) >= self.max_timestep)

    def at(self, t: Tensor, like: Tensor) -> NoiseLevel:
        """Noise level of t: (B,), shaped to broadcast over like: (B, *S), on its device.

        float32, or float64 where `like` is. Between two whole timesteps sigma/alpha is interpolated linearly
        (as EulerDiscreteScheduler does), or alpha where that ratio is infinite.
        """
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        t = t.to(device=like.device, dtype=dtype)
        alpha, sigma = self._flow_level(t) if self.is_flow else self._vp_level(t)
        shape = (-1,) + (1,) * (like.ndim - 1)
        return NoiseLevel(alpha.reshape(shape), sigma.reshape(shape))

    def grid(self, n: int, mu: float | None = None) -> Tensor:
        """The n timesteps of a denoising run, descending, without clean: (n,), int64, or float32 for flow.

        Variance preserving: DDIM's rule in `set_timesteps` under the scheduler's own `timestep_spacing`
        and `steps_offset`. Flow: the rule of FlowMatchEulerDiscreteScheduler, or of UniPC with
        flow sigmas; `mu` for those that shift by resolution, if not that of `from_scheduler`.
        """
        if not 1 <= n <= self._steps:
            raise InputError(f"a grid of {n} steps is not possible: choose 1 to {self._steps}")
        return self._flow_grid(n, mu) if self.is_flow else self._vp_grid(n)

    def draw_noisier(self, t: Tensor, generator: torch.Generator) -> Tensor:
        """s: (B,) uniform in (t, max_timestep], in t's dtype; s = t where t is already the noisiest.

        Whole timesteps on a variance-preserving schedule, any real number on flow, above 0 from `CLEAN` on.
        """
        u = torch.rand(t.shape, generator=generator, device=generator.device, dtype=torch.float64).to(t.device)
        if self.is_flow:
            t = t.clamp(min=0)
        room = self.max_timestep - t.double()
        whole = room.floor()
        step = (1 - u) * room if self.is_flow else ((u * whole).floor() + 1).minimum(whole)
        return (t.double() + step).to(t.dtype)

    def _flow_level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (t / self._steps).clamp(0, 1)
        return 1 - sigma, sigma

    def _vp_level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alphas, sigmas = self._table(t.device, t.dtype)
        position = (t - CLEAN).clamp(0, self._steps)
        low = position.floor().long()
        high = (low + 1).clamp(max=self._steps)
        weight = position - low
        whole = weight == 0
        zero = alphas[high] == 0
        ratio = torch.lerp(sigmas[low] / alphas[low], sigmas[high] / alphas[high].masked_fill(zero, 1), weight)
        between = torch.where(zero, torch.lerp(alphas[low], alphas[high], weight), (1 + ratio**2).rsqrt())
        alpha = torch.where(whole, alphas[low], between)
        sigma = torch.where(whole, sigmas[low], (1 - between**2).clamp(min=0).sqrt())
        return alpha, sigma

    def _table(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """alpha and sigma: (T + 1,) each; row 0 is clean, row t + 1 is timestep t."""
        if (device, dtype) not in self._tables:
            assert self.alphas_cumprod is not None
            squared = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod.double().cpu()])
            alpha, sigma = squared.sqrt(), (1 - squared).clamp(min=0).sqrt()
            self._tables[device, dtype] = alpha.to(dtype).to(device), sigma.to(dtype).to(device)
        return self._tables[device, dtype]

    def _vp_grid(self, n: int) -> Tensor:
        spacing, last = self._config.get("timestep_spacing", "leading"), self._steps - 1
        if spacing == "leading":
            offset = int(self._config.get("steps_offset", 0))
            return (torch.arange(n) * (self._steps // n) + offset).flip(0).clamp(max=last)
        if spacing == "linspace":
            return torch.linspace(0, last, n, dtype=torch.float64).round().long().flip(0)
        if spacing == "trailing":
            return (self._steps - torch.arange(n, dtype=torch.float64) * self._steps / n).round().long() - 1
        raise InputError(f"timestep_spacing '{spacing}' is unknown: use leading, linspace or trailing")

    def _flow_grid(self, n: int, mu: float | None) -> Tensor:
        config, shift, lowest = self._config, self._flow_shift(mu), 1 / self._steps
        if config.get("use_flow_sigmas"):  # UniPC and DPM leave the last point out
            sigma = torch.linspace(1, lowest, n + 1, dtype=torch.float64)[:-1]
        else:
            # without dynamic shifting diffusers shifts the lowest sigma once more than the others
            lowest = lowest if config.get("use_dynamic_shifting") else _shift(lowest, shift)
            sigma = torch.linspace(1, lowest, n, dtype=torch.float64)
        sigma = _shift(sigma, shift)
        if config.get("shift_terminal"):
            sigma = 1 - (1 - sigma) * (1 - float(config["shift_terminal"])) / (1 - sigma[-1])
        return (sigma * self._steps).float()

    def _flow_shift(self, mu: float | None) -> float:
        if not self._config.get("use_dynamic_shifting"):
            return float(self._config.get("flow_shift") or self._config.get("shift") or 1.0)
        mu = self._mu if mu is None else mu
        if mu is None:
            raise InputError("this scheduler shifts its timesteps by resolution: pass mu to grid()")
        return mu if self._config.get("time_shift_type") == "linear" else math.exp(mu)


def _describes_flow(scheduler: Any, config: Mapping[str, Any]) -> bool:
    """Whether x_t is a straight line between data and noise; a class name tells where no setting does."""
    names = (str(config.get("_class_name", "")), type(scheduler).__name__)
    return bool(config.get("use_flow_sigmas")) or any("FlowMatch" in name for name in names)


def _shift(sigma: Sigma, shift: float) -> Sigma:
    """Move a flow's timesteps towards noise: s·sigma / (1 + (s − 1)·sigma) (SD3, 2403.03206)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """ᾱ_t: (T,), float64, with CogVideoX's shift of the SNR and zero terminal SNR where set."""
    cumulative = torch.cumprod(1 - _betas(config), dim=0)
    shift = float(config.get("snr_shift_scale", 1.0))
    cumulative = cumulative / (shift + (1 - shift) * cumulative)
    return _zero_terminal(cumulative) if config.get("rescale_betas_zero_snr") else cumulative


def _betas(config: Mapping[str, Any]) -> Tensor:
    if config.get("trained_betas") is not None:
        return torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    kind, steps = config["beta_schedule"], int(config["num_train_timesteps"])
    if kind == "squaredcos_cap_v2":
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        cumulative = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - cumulative[1:] / cumulative[:-1]).clamp(max=0.999)
    start, end = float(config["beta_start"]), float(config["beta_end"])
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    raise InputError(f"beta_schedule '{kind}' is unknown: use linear, scaled_linear or squaredcos_cap_v2")


def _zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale alpha so that the first stays and the last is zero (2305.08891, algorithm 1)."""
    alpha = alphas_cumprod.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).square()
