"""The inverse of diffusers' loader of single files: a tiny pipeline in Stable Diffusion 1's, or XL's, own layout."""

import re
from typing import Any

import torch
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file(pipe: Any) -> dict[str, Tensor]:
    """All weights of a StableDiffusion(XL)Pipeline under the names of a single-file checkpoint."""
    layers, blocks = pipe.unet.config.layers_per_block, pipe.unet.config.up_block_types
    unet = {_unet(name, layers, blocks): tensor for name, tensor in pipe.unet.state_dict().items()}
    stages = len(pipe.vae.config.block_out_channels)
    vae = {_vae(name, stages): _as_conv(name, tensor) for name, tensor in pipe.vae.state_dict().items()}
    text = {name.removeprefix("text_model."): tensor for name, tensor in pipe.text_encoder.state_dict().items()}
    second = getattr(pipe, "text_encoder_2", None)
    first = "cond_stage_model" if second is None else "conditioner.embedders.0"
    return {
        **({} if second is None else _open_clip(second)),
        **{f"model.diffusion_model.{name}": tensor.contiguous() for name, tensor in unet.items()},
        **{f"first_stage_model.{name}": tensor.contiguous() for name, tensor in vae.items()},
        **{f"{first}.transformer.text_model.{name}": tensor.contiguous() for name, tensor in text.items()},
    }


def _unet(name: str, layers: int, up_blocks: Any) -> str:
    for ours, theirs in _ENDS.items():
        if name.startswith(ours + "."):
            return name.replace(ours, theirs, 1)
    kind, _, rest = name.partition(".")
    if kind == "mid_block":
        part, index, rest = rest.split(".", 2)
        return f"middle_block.{2 * int(index) if part == 'resnets' else 1}.{_inner(rest)}"
    block, part, index, rest = rest.split(".", 3)
    i, j, step = int(block), int(index), layers + 1
    if kind == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{step * (i + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{step * i + j + 1}.{int(part == 'attentions')}.{_inner(rest)}"
    if part == "upsamplers":
        return f"output_blocks.{step * i + layers}.{2 if 'CrossAttn' in up_blocks[i] else 1}.{rest}"
    return f"output_blocks.{step * i + j}.{int(part == 'attentions')}.{_inner(rest)}"


def _inner(rest: str) -> str:
    head, dot, tail = rest.partition(".")
    return _RESNET.get(head, head) + dot + tail


def _vae(name: str, stages: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{stages - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{stages - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    if "mid_block.attentions.0." in name:
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
        for ours, theirs in _ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def _as_conv(name: str, tensor: Tensor) -> Tensor:
    """The old autoencoder's attention was made of 1×1 convolutions."""
    linear = "attentions" in name and tensor.ndim == 2
    return tensor[:, :, None, None] if linear else tensor


_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _open_clip(encoder: Any) -> dict[str, Tensor]:
    """A CLIPTextModelWithProjection under OpenCLIP's names: queries, keys and values in one matrix."""
    state, prefix = encoder.state_dict(), "conditioner.embedders.1.model."
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    named = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
    }
    for i in range(encoder.config.num_hidden_layers):
        layer, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for end in ("weight", "bias"):
            for ours, theirs in _OPEN_CLIP.items():
                named[f"{block}.{theirs}.{end}"] = state[f"{layer}.{ours}.{end}"]
            three = [state[f"{layer}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            named[f"{block}.attn.in_proj_{end}"] = torch.cat(three)
    return {prefix + name: tensor.contiguous() for name, tensor in named.items()}
