"""A LoRA file's layers found in a network, and put into it as an adapter: what acts is what was made, and no less."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from selfnpo_core.errors import InputError
from selfnpo_core.negative import Factors
from selfnpo_core.system.files import load_tensors
from selfnpo_core.weights.layer_names import layers_of, paths_of
from selfnpo_core.weights.lora_file import METADATA, LoraFile, read_lora, with_alphas_in

log = logging.getLogger(__name__)
Lora = Mapping[str, Factors]
"""Layer (its path in the network) → factors."""


def layers_in(file: LoraFile, network: nn.Module) -> dict[str, Factors]:
    """The denoiser's part of a LoRA, by the network's own paths, in the shapes of its layers.

    Raises `InputError` where the network lacks one of the layers, or has it in another size.
    """
    return _fitted(file, file.layers, network)


def loaded_into(pipe: Any, network: nn.Module, file: LoraFile) -> dict[str, Factors]:
    """As `layers_in`, also of names that only diffusers' own converters for this pipeline know.

    They may make several layers of one, as of a fused q, k and v, and must keep all.
    """
    if not _is_in(file, network):
        other = _converted(pipe, file)
        if other is not None and len(other.layers) >= len(file.layers) and _is_in(other, network):
            return layers_in(other, network)
    return layers_in(file, network)


def text_layers(file: LoraFile, pipe: Any) -> dict[str, dict[str, Factors]]:
    """Text encoder of the pipeline → its part of a LoRA, as `layers_in`; encoders that it has not are left out."""
    found = {}
    for part, layers in file.text.items():
        encoder = getattr(pipe, part, None)
        if isinstance(encoder, nn.Module) and hasattr(encoder, "load_adapter"):
            found[part] = _fitted(file, layers, encoder)
    return found


def put_into(network: Any, layers: Lora, adapter: str, pipe: Any = None) -> None:
    """Make an adapter of these layers, active; numbers keep the wider dtype of theirs and the layer's.

    network: of diffusers, or a text encoder of transformers. pipe: whose part it is, where it may be offloaded.
    """
    own = layers_of(network)
    state = {}
    for path, factors in layers.items():
        state[f"{path}.lora_A.weight"] = _placed(factors.down, own[path])
        state[f"{path}.lora_B.weight"] = _placed(factors.up, own[path])
    config = lora_config(layers)
    if hasattr(network, "load_lora_adapter"):
        metadata = {key: _plain(value) for key, value in config.to_dict().items()}
        call = {"prefix": None, "adapter_name": adapter, "metadata": metadata, "low_cpu_mem_usage": True}
        network.load_lora_adapter(state, _pipeline=pipe, **call)
    elif hasattr(network, "load_adapter"):
        network.load_adapter(adapter_name=adapter, adapter_state_dict=state, peft_config=config)
    else:
        raise InputError(f"{type(network).__name__} cannot load LoRAs: use weights that were trained in full")
    made = {path: m for path, m in network.named_modules() if isinstance(m, LoraLayer) and adapter in m.lora_A}
    for path, factors in layers.items():
        scale = factors.alpha / factors.rank
        if path not in made or abs(made[path].scaling[adapter] - scale) > 1e-6 * abs(scale):
            raise InputError(f"the layer '{path}' cannot be given a LoRA here: use weights that were trained in full")


def lora_config(layers: Lora) -> Any:
    """PEFT's configuration of these layers: each one's rank and alpha."""
    from peft import LoraConfig

    ranks, alphas = [f.rank for f in layers.values()], [f.alpha for f in layers.values()]
    rank, alpha = max(set(ranks), key=ranks.count), max(set(alphas), key=alphas.count)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(layers),
        rank_pattern={f"^{layer}": f.rank for layer, f in layers.items() if f.rank != rank},
        alpha_pattern={f"^{layer}": f.alpha for layer, f in layers.items() if f.alpha != alpha},
    )


def metadata_of(layers: Lora, component: str) -> dict[str, str]:
    """What `load_lora_weights` must know beside a file's tensors. component: "unet" or "transformer"."""
    plain = {f"{component}.{key}": _plain(value) for key, value in lora_config(layers).to_dict().items()}
    return {METADATA: json.dumps(plain, indent=2, sort_keys=True), "format": "pt"}


def say_what_is_used(file: LoraFile, taken: frozenset[str] = frozenset()) -> None:
    """Name what is left out, beside the denoiser's layers and those of the text encoders taken, and what is guessed."""
    if left_out := file.left_out(taken):
        log.warning("%s: left out are %s, which have no place here", file.path, left_out)
    if file.guessed:
        log.warning(
            "%s does not say alpha of %d of its %d layers: it is taken as the rank, so its strength is a guess",
            file.path,
            file.guessed,
            file.count,
        )


def _is_in(file: LoraFile, network: nn.Module) -> bool:
    return len(paths_of(network, file.layers)) == len(file.layers)


def _fitted(file: LoraFile, layers: Lora, network: nn.Module) -> dict[str, Factors]:
    paths, own = paths_of(network, layers), layers_of(network)
    kind = type(network).__name__
    if missing := [name for name in layers if name not in paths]:
        raise InputError(
            f"{file.path} is no LoRA for this model: of its {len(layers)} layers the {kind} takes "
            f"{len(layers) - len(missing)} (not '{missing[0]}'){file.made_for}: load the base it was made for"
        )
    if len(set(paths.values())) != len(layers):
        raise InputError(f"{file.path} names a layer twice: get it again")
    fitted = {}
    for name, factors in layers.items():
        weight = _shape(own[paths[name]])
        down, up = _in_shape(factors, weight)
        if down is None or up is None:
            has, wants = (
                "×".join(map(str, shape)) for shape in ((factors.up.shape[0], *factors.down.shape[1:]), weight)
            )
            raise InputError(
                f"{file.path} is no LoRA for this model: its '{name}' is of a weight of {has}, and the {kind} has one "
                f"of {wants}{file.made_for}: load the base it was made for"
            )
        fitted[paths[name]] = Factors(down=down, up=up, alpha=factors.alpha)
    return fitted


def _in_shape(factors: Factors, weight: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """The factors for a weight (out, in[, k, …]); a convolution of one pixel is a matrix too."""
    rank, (rows, columns), kernel = factors.rank, weight[:2], weight[2:]
    down, up = (rank, columns, *kernel), (rows, rank, *(1 for _ in kernel))
    ones = all(n == 1 for n in (*factors.down.shape[2:], *factors.up.shape[2:]))
    if tuple(factors.down.shape) != down and not (ones and all(n == 1 for n in kernel)):
        return None, None
    if factors.down.shape[1] != columns or factors.up.shape[0] != rows or factors.up[0, 0].numel() != 1:
        return None, None
    return factors.down.reshape(down), factors.up.reshape(up)


def _converted(pipe: Any, file: LoraFile) -> LoraFile | None:
    """The file in diffusers' names, by the converter of the pipeline's class; `None` where it has none for it."""
    try:
        tensors = with_alphas_in(file, load_tensors(file.path))
        state, *alphas, _ = type(pipe).lora_state_dict(tensors, return_lora_metadata=True)
        told = {name: torch.tensor(alpha) for some in alphas if some for name, alpha in some.items()}
        return read_lora(file.path, {**state, **told}, alphas_in=True)
    except (ValueError, LookupError, RuntimeError, AttributeError, InputError):
        return None


def _shape(layer: Any) -> tuple[int, ...]:
    """Of its weight, in whatever form it is kept: (out, in[, k, …])."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size


def _placed(factor: Tensor, layer: nn.Module) -> Tensor:
    """Where the layer's weight is, unless that is offloaded; in the wider dtype of the two, if it calculates in its."""
    weight: Any = layer.weight
    wide = weight.dtype.is_floating_point and weight.dtype.itemsize > 1
    dtype = torch.promote_types(factor.dtype, weight.dtype) if wide else factor.dtype
    return factor.to(factor.device if weight.is_meta else weight.device, dtype)


def _plain(value: Any) -> Any:
    """JSON knows no sets and no enumerations."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.value if hasattr(value, "value") else value
