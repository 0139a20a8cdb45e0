"""Arithmetic on negative weights, as state dicts: name → tensor.

    compose   θ_neg = θ + α·η + β·δ    η: offset of a preference-tuned model, δ: the learned negative offset
                                       (Diffusion-NPO; Self-NPO, 2505.11777)
    neon      θ′ = θ − w·δ             one model, extrapolated away from its negative (Neon, 2510.03597)
    nearest   δ ≈ U_r·S_r·V_rᵀ         of one weight, the nearest of rank r (Eckart and Young): B = U·√S, A = √S·Vᵀ

An offset may name a part of the weights only; a name that the base does not have is an error. Sums are made
in float32 (float64 where the base is) and returned in the base's dtype.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from selfnpo_core.errors import InputError

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A layer's LoRA. down (A): (r, in[, kh, kw]); up (B): (out, r[, 1, 1]); alpha: with it the scale is alpha/r."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def product(self) -> Tensor:
        """s·B·A: (out, in[, kh, kw]), float32."""
        flat = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.alpha / self.rank * flat).reshape(self.up.shape[0], *self.down.shape[1:])


def compose(
    base: Weights,
    eta: Weights | None = None,
    delta: Weights | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> dict[str, Tensor]:
    """θ + α·η + β·δ. The tensors are new, also those that no offset names."""
    result = {name: tensor.clone() for name, tensor in base.items()}
    for offset, scale in ((eta, alpha), (delta, beta)):
        for name, tensor in (offset or {}).items():
            _check(name, tensor, base)
            result[name] = _widen(result[name]) + scale * tensor.to(result[name].device, _wide(base[name]))
    return {name: tensor.to(base[name].dtype) for name, tensor in result.items()}


def neon(base: Weights, delta: Weights, w: float) -> dict[str, Tensor]:
    """θ − w·δ."""
    return compose(base, delta=delta, beta=-w)


def random_like(delta: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """A random offset whose every tensor has the norm of delta's.

    It changes predictions much less than a trained one: a control scales it to the same effect first
    (`selfnpo_core.weights.inspection.scale_to_effect`).
    """
    result = {}
    for name, tensor in delta.items():
        noise = torch.randn(tensor.shape, generator=generator, device=generator.device, dtype=_wide(tensor))
        noise = noise.to(tensor.device)
        result[name] = (noise * (_norm(tensor) / _norm(noise))).to(tensor.dtype)
    return result


def shuffled(delta: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """An offset whose every tensor holds delta's numbers in a random order: of its norm, and of no use by design.

    As `random_like` it is weaker than delta is.
    """
    return {
        name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator).to(tensor.device)].view_as(tensor)
        for name, tensor in delta.items()
    }


def nearest(delta: Tensor, rank: int) -> Factors:
    """The nearest product of rank ≤ r to one weight's δ."""
    flat = delta.float().flatten(1)
    rank = min(rank, *flat.shape)
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * v[:rank]
    tail = (1,) * (delta.ndim - 2)
    return Factors(
        down=down.reshape(rank, *delta.shape[1:]).contiguous(),
        up=up.reshape(len(delta), rank, *tail).contiguous(),
        alpha=float(rank),
    )


def relative_error(delta: Mapping[str, Tensor], approximation: Mapping[str, Tensor]) -> float:
    """‖δ − δ′‖/‖δ‖ over all parameters; what the approximation lacks counts as zero."""
    errors = [float((d.float() - approximation.get(n, torch.zeros(())).float()).norm()) for n, d in delta.items()]
    size = math.hypot(*(float(d.float().norm()) for d in delta.values()))
    return math.hypot(*errors) / size


def norm(delta: Weights) -> float:
    """‖δ‖ over all tensors."""
    if not delta:
        return 0.0
    return float(torch.stack([_norm(tensor).cpu() for tensor in delta.values()]).norm())


def relative_drift(delta: Weights, base: Weights) -> float:
    """‖δ‖ / ‖θ‖."""
    return norm(delta) / norm(base)


def _norm(tensor: Tensor) -> Tensor:
    """‖·‖ summed in float64: in float32 a norm of 10⁸ numbers is two per cent off."""
    result: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return result


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(_wide(tensor))


def _check(name: str, tensor: Tensor, base: Weights) -> None:
    if name not in base:
        raise InputError(f"the offset has '{name}', which the base has not: is it of another model?")
    if tensor.shape != base[name].shape:
        raise InputError(f"'{name}' is {tuple(tensor.shape)}, but {tuple(base[name].shape)} in the base: wrong model?")
