"""Negative weights as offsets: a LoRA's factors, the whole differences they stand for, and LoRAs made of differences.

δ = s·B·A                 of a layer's weight, flattened to (out, in·kh·kw); s = α/r, or α/√r for rsLoRA (2312.03732)
δ ≈ U_r·S_r·V_rᵀ          the nearest of rank r (Eckart and Young), split as B = U·√S, A = √S·Vᵀ
"""

from collections.abc import Mapping

from torch import Tensor, nn

from selfnpo_core.errors import InputError
from selfnpo_core.negative import Factors, nearest
from selfnpo_core.weights.lora_layers import Lora, layers_in
from selfnpo_core.weights.npo_folder import Npo

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def lora_of(npo: Npo, network: nn.Module | None = None) -> dict[str, Factors]:
    """The factors of a LoRA, by the denoiser's own paths. Layers of text encoders are no part of negative weights.

    network: the denoiser, without which names other than its own cannot be read.
    """
    if npo.lora is None:
        raise InputError(f"{npo.path} is an offset of all weights, not a LoRA")
    if network is not None:
        return layers_in(npo.lora, network)
    if not npo.lora.by_path:
        raise InputError(f"{npo.path} has {npo.lora.naming}'s names, which only its base can tell: give it as --model")
    return dict(npo.lora.layers)


def offset_of(npo: Npo, network: nn.Module | None = None) -> dict[str, Tensor]:
    """Negative weights as differences of whole parameters, float32: parameter of the denoiser → δ.

    network: see `lora_of`.
    """
    if npo.kind == "delta":
        return {name: tensor.float() for name, tensor in npo.tensors.items()}
    return {f"{layer}.weight": factors.product() for layer, factors in lora_of(npo, network).items()}


def to_lora(delta: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """The nearest LoRA of this rank (or less, where a layer has less), and what no LoRA can hold: vectors.

    delta: parameter → δ, matrices (out, in) or convolutions (out, in, kh, kw), and vectors (norms, biases).
    """
    if rank < 1:
        raise InputError(f"a rank of {rank} is not possible: give 1 or more")
    factors, rest = {}, {}
    for name, tensor in delta.items():
        layer, _, parameter = name.rpartition(".")
        if parameter != "weight" or tensor.ndim not in (2, 4):
            rest[name] = tensor
        elif bool(tensor.any()):
            factors[layer] = nearest(tensor, rank)
    return factors, rest


def scaled(lora: Lora, strength: float) -> dict[str, Factors]:
    """The LoRA times a number, on B."""
    return {layer: Factors(down=f.down, up=f.up * strength, alpha=f.alpha) for layer, f in lora.items()}


def peft_tensors(lora: Lora, component: str) -> dict[str, Tensor]:
    """By the names of the file that `load_lora_weights` reads. component: "unet" or "transformer"."""
    return {
        f"{component}.{layer}{end}": tensor.float().contiguous()
        for layer, factors in lora.items()
        for end, tensor in ((_DOWN, factors.down), (_UP, factors.up))
    }
