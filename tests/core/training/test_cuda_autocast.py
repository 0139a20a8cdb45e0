"""The types that a simulation calculates in are those of torch's own CUDA autocast, which needs no GPU to be asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from selfnpo_core.system import private
from selfnpo_core.training.cuda_autocast import FLOAT32, CudaAutocast

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "__pow__": lambda x: x**2,
    "__rdiv__": lambda x: 1 / x,
    "__rpow__": lambda x: 2**x,
    "__rtruediv__": lambda x: torch.tensor(1.0, dtype=x.dtype, device=x.device) / x,
    "dist": lambda x: torch.dist(x, x),
    "norm": lambda x: x.norm(),
    "linalg_vector_norm": torch.linalg.vector_norm,
    "linalg_matrix_norm": torch.linalg.matrix_norm,
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "cosine_similarity": lambda x: functional.cosine_similarity(x, x),
    "normalize": functional.normalize,
    "layer_norm": lambda x: functional.layer_norm(x, (8,)),
    "native_layer_norm": lambda x: torch.native_layer_norm(x, (8,), None, None, 1e-5)[0],
    "rms_norm": lambda x: functional.rms_norm(x, (8,)),
    "group_norm": lambda x: functional.group_norm(x, 2),
    "interpolate": lambda x: functional.interpolate(x, scale_factor=2.0, mode="nearest"),
    "binary_cross_entropy_with_logits": lambda x: functional.binary_cross_entropy_with_logits(x, x),
    "hinge_embedding_loss": lambda x: functional.hinge_embedding_loss(x, x),
    "huber_loss": lambda x: functional.huber_loss(x, x),
    "kl_div": lambda x: functional.kl_div(x, x, reduction="sum"),
    "l1_loss": lambda x: functional.l1_loss(x, x),
    "margin_ranking_loss": lambda x: functional.margin_ranking_loss(x, x, x),
    "mse_loss": lambda x: functional.mse_loss(x, x),
    "poisson_nll_loss": lambda x: functional.poisson_nll_loss(x, x),
    "smooth_l1_loss": lambda x: functional.smooth_l1_loss(x, x),
    "soft_margin_loss": lambda x: functional.soft_margin_loss(x, x),
    "triplet_margin_loss": lambda x: functional.triplet_margin_loss(x, x, x),
    "softmin": lambda x: functional.softmin(x, dim=-1),
    "softplus": functional.softplus,
    **{name: lambda x, name=name: getattr(x, name)(0) for name in ("cumprod", "cumsum", "log_softmax", "softmax")},
    "logsumexp": lambda x: x.logsumexp(0),
    "pow": lambda x: torch.pow(x, 2),
}
"""A call of each name that is not a tensor's method without arguments."""
UNASKED = {"cdist", "cosine_embedding_loss", "cross_entropy", "multi_margin_loss"} | {
    "multilabel_margin_loss",
    "nll_loss",
    "pdist",
}
"""Of which torch's kernels for CUDA do not answer without CUDA."""
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "area": lambda x: functional.interpolate(x, scale_factor=2.0, mode="area"),
    "matmul": lambda x: x.float() @ x.float(),
    "float64": lambda x: functional.layer_norm(x.double(), (8,)),
    **{name: getattr(functional, name) for name in ("silu", "gelu", "tanh", "sigmoid")},
    **{name: lambda x, name=name: getattr(x, name)() for name in ("mean", "std", "sqrt", "cos", "abs")},
}


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """`torch.autocast` switches itself off where there is no GPU."""
    before, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before)
        torch.set_autocast_dtype("cuda", dtype)


@pytest.mark.parametrize("name", sorted({*FLOAT32, *OTHERS} - UNASKED))
def test_types_are_those_of_torchs_own_cuda_kernels(name):
    call = CALLS.get(name) or OTHERS.get(name) or (lambda x: getattr(x, name)())
    with private.fake_tensors(), torch.no_grad():
        with cuda_autocast():
            theirs = call(torch.empty(2, 8, 8, 8, device="cuda", dtype=torch.bfloat16)).dtype
        x = torch.empty(2, 8, 8, 8, dtype=torch.bfloat16)
        with CudaAutocast(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert call(x).dtype == theirs
        with CudaAutocast():
            outside = call(x).dtype
        assert outside == call(x).dtype  # and without autocast it does nothing


def test_without_gradients_and_again_in_the_backward_pass():
    """What is kept of a LayerNorm, and what checkpointing calculates anew, is float32."""
    layer = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    seen = []
    layer[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    for on in (False, True):
        for recompute in (False, True):
            x = torch.zeros(4, 8, requires_grad=True)
            with CudaAutocast() if on else torch.enable_grad():
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    out = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
                private.backward_within_modes(out.float().sum())
            assert x.grad is not None
    assert seen == [*[torch.bfloat16] * 3, *[torch.float32] * 3]


@pytest.mark.parametrize("on", [False, True])
def test_a_layer_norm_saves_its_input_in_float32_and_the_layers_around_it_do_not(on):
    layers = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    saved: list[list[torch.dtype]] = []

    def keep(tensor):
        if tensor.shape == (4, 8):  # as large as what comes in
            saved[-1].append(tensor.dtype)
        return tensor

    x = torch.zeros(4, 8)
    with CudaAutocast() if on else torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for layer in layers:
            saved.append([])
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                x = layer(x)
    assert saved == [[torch.bfloat16], [torch.float32 if on else torch.bfloat16], [torch.bfloat16]]
