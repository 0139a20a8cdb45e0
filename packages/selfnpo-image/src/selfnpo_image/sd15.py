"""The SD1.5 family (2112.10752): any `StableDiffusionPipeline`, epsilon or v-prediction, any size."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor

from selfnpo_image import recipes
from selfnpo_image.backbone import ImageBackbone
from selfnpo_image.kinds import CONFIGS, FileLayout, Kind, KohyaForm
from selfnpo_image.unets import CLIP_L, UNET_TARGETS, check_unet, first_width, halvings

LAYOUT = FileLayout(
    text="cond_stage_model.transformer.",
    cross_attention="model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    folder=CONFIGS / "sd15",
    tokenizers={"tokenizer": (CLIP_L, None)},
)


def _check(kind: Kind, config: Mapping[str, Any], name: str) -> None:
    others = ("addition_embed_type", "class_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type")
    check_unet(kind, config, name, others)


class SD15(ImageBackbone):
    """A model of the SD1.5 family as the training engine sees it."""

    kind = Kind(
        name="sd15",
        title="SD1.5",
        examples="sd15 or dreamshaper",
        pipeline=StableDiffusionPipeline,
        presets=recipes.SD15,
        paper=recipes.SD15_PAPER,
        width=320,
        width_of=first_width,
        network="UNet2DConditionModel",
        left_out={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        check=_check,
        granularity=halvings,
        layout=LAYOUT,
        kohya=KohyaForm(first_release=False, side=512),
    )
    lora_targets = UNET_TARGETS

    def _encode(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        return (pipe.encode_prompt(list(texts), self.device, 1, False)[0],)

    def _encode_null(self, pipe: Any) -> tuple[Tensor, ...]:
        return self._encode(pipe, [""])

    def _shapes_of_rows(self, pipe: Any) -> tuple[tuple[int, ...], ...]:
        return ((pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim),)

    def _told(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        return {"encoder_hidden_states": rows[0]}
