"""Judges' weights under the names of transformers' own networks: open_clip's CLIP, and BLIP as its authors wrote it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from selfnpo_core.errors import InputError

_HEAD = 64
"""Width of an attention head of BERT and of BLIP's ViT."""
_CLIP_TOWER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_CLIP_REST = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_BLIP_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_BLIP_REST = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}


def clip_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names → CLIPModel's. What is neither (a causal mask) is left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.float()
        layer = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.?(weight|bias)", name)
        if name in _CLIP_REST:
            found[_CLIP_REST[name]] = tensor
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif layer:
            tower, number, part, kind = layer.groups()
            place = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}."
            part = part.rstrip(".")
            if part == "attn.in_proj_":
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{place}self_attn.{letter}_proj.{kind}"] = third
            elif part in _CLIP_TOWER:
                found[f"{place}{_CLIP_TOWER[part]}.{kind}"] = tensor
    return found


def blip_tensors(state: Mapping[str, Tensor], file: Path) -> tuple[Any, Any, dict[str, Tensor], dict[str, Tensor]]:
    """Configurations and tensors of BlipVisionModel and BlipTextModel, from a file with blip.visual_encoder.… and
    blip.text_encoder.…; sizes are those of the tensors."""
    from transformers import BlipTextConfig, BlipVisionConfig

    seen = {
        name.removeprefix("blip.visual_encoder."): value.float()
        for name, value in state.items()
        if "visual_encoder" in name
    }
    read = {name.removeprefix("blip.text_encoder."): value for name, value in state.items() if "text_encoder" in name}
    try:
        hidden, patch = seen["cls_token"].shape[-1], seen["patch_embed.proj.weight"].shape[-1]
        vision = BlipVisionConfig(
            hidden_size=hidden,
            intermediate_size=len(seen["blocks.0.mlp.fc1.weight"]),
            num_hidden_layers=_layers(seen, "blocks."),
            num_attention_heads=hidden // _HEAD,
            patch_size=patch,
            image_size=patch * round((seen["pos_embed"].shape[1] - 1) ** 0.5),
            layer_norm_eps=1e-6,  # timm's
        )
        words, width = read["embeddings.word_embeddings.weight"].shape
        text = BlipTextConfig(
            vocab_size=words,
            hidden_size=width,
            encoder_hidden_size=hidden,
            intermediate_size=len(read["encoder.layer.0.intermediate.dense.weight"]),
            num_hidden_layers=_layers(read, "encoder.layer."),
            num_attention_heads=width // _HEAD,
            max_position_embeddings=len(read["embeddings.position_embeddings.weight"]),
        )
    except KeyError as error:
        raise InputError(f"{file} is no ImageReward file (it lacks {error}): get it again") from None
    vision_tensors = {_blip_name(name): value for name, value in seen.items()}
    text_tensors = {n: v.float() for n, v in read.items() if v.is_floating_point() and not n.startswith("cls.")}
    return vision, text, vision_tensors, text_tensors


def _blip_name(name: str) -> str:
    if name in _BLIP_REST:
        return _BLIP_REST[name]
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    return (
        f"encoder.layers.{block[1]}.{_BLIP_BLOCK[block[2]]}.{block[3]}" if block and block[2] in _BLIP_BLOCK else name
    )


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
