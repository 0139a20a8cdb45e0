"""CUDA's autocast on tensors that are not there, so that what a GPU would hold can be told without one.

A simulation's tensors say that they are on the CPU, whose autocast leaves LayerNorm and the like in 16 bits. CUDA's
calculates them in float32: their inputs are copied in 32 bits, and what comes out is kept so for the backward pass.
The names are those of torch's documentation ("CUDA Ops that can autocast to float32") and what its dispatcher has
beside them. torch's own kernels answer for CUDA's tensors without numbers too, though only without gradients: they are
what the names are tested against.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FLOAT32 = frozenset(
    (
        *("__pow__", "__rdiv__", "__rpow__", "__rtruediv__", "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log"),
        *("log10", "log1p", "log2", "pow", "reciprocal", "rsqrt", "sinh", "softplus", "tan"),
        *("cumprod", "cumsum", "log_softmax", "logsumexp", "prod", "softmax", "softmin", "sum"),
        *("group_norm", "layer_norm", "native_layer_norm", "rms_norm"),
        *("dist", "linalg_matrix_norm", "linalg_vector_norm", "norm", "normalize", "renorm"),
        *("cdist", "cosine_similarity", "pdist"),
        *("binary_cross_entropy_with_logits", "cosine_embedding_loss", "cross_entropy", "hinge_embedding_loss"),
        *("huber_loss", "kl_div", "l1_loss", "margin_ranking_loss", "mse_loss", "multi_margin_loss"),
        *("multilabel_margin_loss", "nll_loss", "poisson_nll_loss", "smooth_l1_loss", "soft_margin_loss"),
        *("triplet_margin_loss", "interpolate"),
    )
)
"""Functions and methods of torch by name, whose 16-bit arguments CUDA's autocast makes float32."""


class CudaAutocast(TorchFunctionMode):
    """Within it, what the CPU's autocast is on for is calculated in the types that CUDA's would calculate it in.

    Backward passes are those of `private.backward_within_modes`; others leave it, and with it what gradient
    checkpointing calculates anew.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if not torch.is_autocast_enabled("cpu") or not _is_wide(func, (*args, *given.values())):
            return func(*args, **given)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_widened, args), **{name: _widened(value) for name, value in given.items()})


def _is_wide(func: Callable[..., Any], given: Iterable[Any]) -> bool:
    name = getattr(func, "__name__", "")
    is_mean = name == "interpolate" and any(isinstance(value, str) and value == "area" for value in given)
    return name in FLOAT32 and not is_mean


def _widened(value: Any) -> Any:
    """Float64 stays what it is, as in autocast."""
    is_narrow = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_narrow else value
