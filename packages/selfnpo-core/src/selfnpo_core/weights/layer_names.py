"""The names that files give to a network's layers, and which layer is meant.

A file may have a layer by its path, by its path with underscores (kohya's), by what diffusers' first releases called
it (….attn1.processor.to_q), or, of a UNet, by its name in the first release of Stable Diffusion, which counts all
blocks through (input_blocks.4.1.proj_in). All are names of layers that a network has, so each is looked up there.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from selfnpo_core.errors import InputError

_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Path → every linear layer and convolution, adapters' own left out."""
    return {
        path.removesuffix(".base_layer"): module
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | _ConvNd) and ".lora_" not in path
    }


def paths_of(network: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Name in a file → path of the layer; a name that stands for none is left out."""
    known: dict[str, str] = {}
    for path in layers_of(network):
        for name in _names(path, getattr(network, "config", {})):
            known.setdefault(name.replace(".", "_"), path)
    found = {}
    for name in names:
        if ways := [way for way in _ways(name) if way in known]:
            found[name] = known[ways[0]]
    return found


def first_release(layer: str, unet: Mapping[str, Any]) -> str:
    """A layer of diffusers' UNet by its name in the first release, which counts all blocks through.

    unet: its configuration. Raises `InputError` for a layer that was not there.
    """
    if layer in _ENDS:
        return _ENDS[layer]
    kind, _, rest = layer.partition(".")
    each = int(unet["layers_per_block"]) + 1
    if kind == "mid_block":
        part, index, inner = rest.split(".", 2)
        return f"middle_block.{2 * int(index) if part == 'resnets' else 1}.{_inner(inner)}"
    if kind not in ("down_blocks", "up_blocks"):
        raise InputError(f"'{layer}' has no name in kohya's layout: export it as --format diffusers")
    block, part, index, inner = rest.split(".", 3)
    i, j = int(block), int(index)
    if kind == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{each * (i + 1)}.0.op"
        return f"input_blocks.{each * i + j + 1}.{int(part == 'attentions')}.{_inner(inner)}"
    if part == "upsamplers":
        after = 2 if "CrossAttn" in unet["up_block_types"][i] else 1
        return f"output_blocks.{each * (i + 1) - 1}.{after}.conv"
    return f"output_blocks.{each * i + j}.{int(part == 'attentions')}.{_inner(inner)}"


def _inner(rest: str) -> str:
    head, dot, tail = rest.partition(".")
    return _RESNET.get(head, head) + dot + tail


def _names(path: str, config: Any) -> Iterator[str]:
    yield path
    yield f"text_model.{path}"  # of CLIP's text encoder, which has had this prefix and lost it
    if isinstance(config.get("layers_per_block") if hasattr(config, "get") else None, int):
        try:
            yield first_release(path, config)
        except (InputError, ValueError, KeyError):  # a layer that has none
            return


def _ways(name: str) -> Iterator[str]:
    """With underscores: as it stands, and as diffusers' first releases meant it."""
    flat = name.replace(".processor.", ".").replace(".", "_").replace("_processor_", "_")
    yield flat
    yield f"{flat}_0"  # to_out, which is a list
    for old, new in _OF_TEXT.items():
        if flat.endswith(f"_{old}"):
            yield flat.removesuffix(old) + new
