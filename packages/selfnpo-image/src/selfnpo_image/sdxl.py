"""The SDXL family (2307.01952): any `StableDiffusionXLPipeline` base model.

Its UNet is told, beside the tokens of two text encoders, the pooled text and six numbers of the picture: its original
size, its crop's corner and its target size. As in the stock pipeline they are those of an uncropped picture of the size
asked for. The refiner, which is told an aesthetic score in their place, is another model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from selfnpo_image import recipes
from selfnpo_image.backbone import ImageBackbone
from selfnpo_image.kinds import CONFIGS, FileLayout, Kind, KohyaForm
from selfnpo_image.unets import CLIP_L, UNET_TARGETS, check_unet, first_width, halvings

LAYOUT = FileLayout(
    text="conditioner.embedders.1.model.",
    cross_attention="model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    folder=CONFIGS / "sdxl",
    tokenizers={"tokenizer": (CLIP_L, None), "tokenizer_2": ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "!")},
)


def _check(kind: Kind, config: Mapping[str, Any], name: str) -> None:
    check_unet(kind, config, name, ("class_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type"))
    if config.get("addition_embed_type") != "text_time":
        raise kind.wrong(name, f"a UNet with addition_embed_type {config.get('addition_embed_type')}")


class SDXL(ImageBackbone):
    """A model of the SDXL family as the training engine sees it."""

    kind = Kind(
        name="sdxl",
        title="SDXL",
        examples="sdxl or juggernaut-xl",
        pipeline=StableDiffusionXLPipeline,
        presets=recipes.SDXL,
        paper=recipes.SDXL_PAPER,
        width=320,
        width_of=first_width,
        network="UNet2DConditionModel",
        text_encoders=("text_encoder", "text_encoder_2"),
        check=_check,
        granularity=halvings,
        layout=LAYOUT,
        kohya=KohyaForm(first_release=True, side=1024),
    )
    lora_targets = UNET_TARGETS
    upcasts_vae = True

    def _encode(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        tokens, _, pooled, _ = pipe.encode_prompt(list(texts), device=self.device, do_classifier_free_guidance=False)
        return tokens, pooled

    def _encode_null(self, pipe: Any) -> tuple[Tensor, ...]:
        """Zeros where the model is configured so, as SDXL itself is, else the empty text."""
        _, tokens, _, pooled = pipe.encode_prompt("", device=self.device, do_classifier_free_guidance=True)
        return tokens, pooled

    def _shapes_of_rows(self, pipe: Any) -> tuple[tuple[int, ...], ...]:
        config = pipe.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return (pipe.tokenizer.model_max_length, config.cross_attention_dim), (pooled,)

    def _told(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        tokens, pooled = rows
        ids = torch.tensor([*self.size, 0, 0, *self.size], dtype=tokens.dtype, device=tokens.device)
        added = {"text_embeds": pooled, "time_ids": ids.expand(len(tokens), -1)}
        return {"encoder_hidden_states": tokens, "added_cond_kwargs": added}
