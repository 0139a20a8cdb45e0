"""Negative weights as offsets: a LoRA's factors, the whole differences they stand for, and LoRAs made of differences.

δ = s·B·A                 of a layer's weight, flattened to (out, in·kh·kw); s = α/r, or α/√r for rsLoRA (2312.03732)
δ ≈ U_r·S_r·V_rᵀ          the nearest of rank r (Eckart and Young), split as B = U·√S, A = √S·Vᵀ
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.negative import Factors, nearest
from selfnpo_core.weights.npo_folder import Npo

METADATA = "lora_adapter_metadata"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


Lora = Mapping[str, Factors]
"""Layer (its path in the denoiser) → factors."""


def lora_of(npo: Npo) -> dict[str, Factors]:
    """The factors of a LoRA that this project or PEFT wrote, alpha from the file's metadata."""
    if npo.kind != "lora":
        raise InputError(f"{npo.path} is an offset of all weights, not a LoRA")
    with safe_open(str(npo.path), framework="pt") as file:
        stored = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    found: dict[str, Factors] = {}
    for name, down in npo.tensors.items():
        if not name.endswith(_DOWN) or (up := npo.tensors.get(name.removesuffix(_DOWN) + _UP)) is None:
            continue
        component, _, layer = name.removesuffix(_DOWN).partition(".")
        alpha = _alpha(stored, component, layer, down.shape[0], npo.path)
        found[layer] = Factors(down=down, up=up, alpha=alpha)
    if 2 * len(found) != len(npo.tensors):
        others = sorted(name for name in npo.tensors if not name.endswith((_DOWN, _UP)))
        which = f" ('{others[0]}')" if others else ""
        raise InputError(f"{npo.path} has keys that are no plain LoRA in PEFT's names{which}: load it with diffusers")
    return found


def offset_of(npo: Npo) -> dict[str, Tensor]:
    """Negative weights as differences of whole parameters, float32: parameter of the denoiser → δ."""
    if npo.kind == "delta":
        return {name: tensor.float() for name, tensor in npo.tensors.items()}
    return {f"{layer}.weight": factors.product() for layer, factors in lora_of(npo).items()}


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


def peft_metadata(lora: Lora, component: str) -> dict[str, str]:
    """What `load_lora_weights` must know beside the tensors: each layer's rank and alpha."""
    from peft import LoraConfig

    ranks = [factors.rank for factors in lora.values()]
    most = max(set(ranks), key=ranks.count)
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        target_modules=sorted(lora),
        rank_pattern={f"^{layer}": f.rank for layer, f in lora.items() if f.rank != most},
        alpha_pattern={f"^{layer}": f.alpha for layer, f in lora.items() if f.alpha != most},
    ).to_dict()
    plain = {f"{component}.{key}": _plain(value) for key, value in config.items()}
    return {METADATA: json.dumps(plain, indent=2, sort_keys=True), "format": "pt"}


def _alpha(stored: Mapping[str, Any], component: str, layer: str, rank: int, path: Path) -> float:
    """PEFT's own rule: the first pattern that matches the end, else the adapter's alpha, else the rank."""
    from peft.utils.other import get_pattern_key

    patterns = stored.get(f"{component}.alpha_pattern") or {}
    key = get_pattern_key(patterns.keys(), layer)
    alpha = float(patterns.get(key, stored.get(f"{component}.lora_alpha") or rank))
    if stored.get(f"{component}.use_dora"):
        raise InputError(f"{path} is a DoRA, whose effect is no product of two factors: merge it instead")
    return alpha * math.sqrt(rank) if stored.get(f"{component}.use_rslora") else alpha


def _plain(value: Any) -> Any:
    """JSON knows no sets and no enumerations."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.value if hasattr(value, "value") else value
