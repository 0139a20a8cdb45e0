"""What a network predicts, and the one currency that all of them are changed into: `Estimate(x0, eps)`.

With x_t = alpha·x0 + sigma·eps:

    epsilon        eps                       x0 = (x_t − sigma·eps) / alpha
    v_prediction   v = alpha·eps − sigma·x0  x0 = (alpha·x_t − sigma·v) / n,  eps = (sigma·x_t + alpha·v) / n
    sample         x0                        eps = (x_t − alpha·x0) / sigma
    flow           u = eps − x0              x0 = (x_t − sigma·u) / m,        eps = (x_t + alpha·u) / m

where n = alpha² + sigma² (1 if variance preserving) and m = alpha + sigma (1 on a rectified flow). Only
`epsilon` divides by alpha, only `sample` by sigma. Sources: 2006.11239 (epsilon), 2202.00512 (v), 2210.02747
(flow).
Shapes: x_t, output, x0, eps: (B, *S); alpha, sigma: (B, 1, …).
"""

from dataclasses import dataclass

from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.schedule import NoiseLevel

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True)
class Estimate:
    """A denoiser's opinion of x_t: the clean sample x0: (B, *S) and the noise eps: (B, *S) it is made of."""

    x0: Tensor
    eps: Tensor


def to_estimate(output: Tensor, x_t: Tensor, level: NoiseLevel, prediction_type: str) -> Estimate:
    """A network's output as an `Estimate`. Only `epsilon` says nothing of x0 where alpha is zero."""
    alpha, sigma = level.alpha, level.sigma
    if prediction_type == "epsilon":
        return Estimate((x_t - sigma * output) / alpha, output)
    if prediction_type == "v_prediction":
        n = alpha**2 + sigma**2
        return Estimate((alpha * x_t - sigma * output) / n, (sigma * x_t + alpha * output) / n)
    if prediction_type == "sample":
        return Estimate(output, (x_t - alpha * output) / sigma)
    if prediction_type == "flow":
        m = alpha + sigma
        return Estimate((x_t - sigma * output) / m, (x_t + alpha * output) / m)
    raise _unknown(prediction_type)


def from_estimate(estimate: Estimate, x_t: Tensor, level: NoiseLevel, prediction_type: str) -> Tensor:
    """The inverse of `to_estimate`. No division, so it is finite at every noise level."""
    assert estimate.x0.shape == x_t.shape
    if prediction_type == "epsilon":
        return estimate.eps
    if prediction_type == "v_prediction":
        return level.alpha * estimate.eps - level.sigma * estimate.x0
    if prediction_type == "sample":
        return estimate.x0
    if prediction_type == "flow":
        return estimate.eps - estimate.x0
    raise _unknown(prediction_type)


def _unknown(prediction_type: str) -> InputError:
    return InputError(f"prediction type '{prediction_type}' is unknown: use one of {', '.join(PREDICTION_TYPES)}")
