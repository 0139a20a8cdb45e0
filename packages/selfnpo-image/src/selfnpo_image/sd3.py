"""The SD3 family (2403.03206): any `StableDiffusion3Pipeline`, SD3 and SD3.5. Rectified flow on a joint transformer.

T5 may be left out of a model; its tokens are then zeros, as in the stock pipeline. The prompt's tokens are 77 of CLIP's
and 256 of T5's, the stock pipeline's default.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_image import recipes
from selfnpo_image.backbone import ImageBackbone
from selfnpo_image.kinds import Kind

T5_TOKENS = 256
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_TEXT = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
_FEED_FORWARD = [f"{name}.net.{part}" for name in ("ff", "ff_context") for part in ("0.proj", "2")]


def _check(kind: Kind, config: Mapping[str, Any], name: str) -> None:
    if config.get("in_channels", 16) != (config.get("out_channels") or config.get("in_channels", 16)):
        raise kind.wrong(name, f"an editing model ({config['in_channels']} input channels)")


def _width(config: Mapping[str, Any]) -> int | None:
    heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
    return heads * size if isinstance(heads, int) and isinstance(size, int) else None


class SD3(ImageBackbone):
    """A model of the SD3 family as the training engine sees it."""

    kind = Kind(
        name="sd3",
        title="SD3",
        examples="sd3.5-medium",
        pipeline=StableDiffusion3Pipeline,
        presets=recipes.SD3,
        paper=recipes.SD3_PAPER,
        width=1536,
        width_of=_width,
        network="SD3Transformer2DModel",
        denoiser="transformer",
        text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        optional=("text_encoder_3",),
        tokens={"text_encoder_3": T5_TOKENS},
        left_out={"image_encoder": None, "feature_extractor": None},
        predicts=("flow",),
        check=_check,
        granularity=lambda config: int(config.patch_size),
    )
    lora_targets: Mapping[str, Sequence[str]] = {
        "attention": [*_ATTENTION, *_TEXT],
        "all": [*_ATTENTION, *_TEXT, *_FEED_FORWARD],
    }

    def _encode(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        tokens, _, pooled, _ = pipe.encode_prompt(
            list(texts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        return tokens, pooled

    def _encode_null(self, pipe: Any) -> tuple[Tensor, ...]:
        return self._encode(pipe, [""])

    def _shapes_of_rows(self, pipe: Any) -> tuple[tuple[int, ...], ...]:
        config = pipe.transformer.config
        tokens = pipe.tokenizer_max_length + T5_TOKENS
        return (tokens, config.joint_attention_dim), (config.pooled_projection_dim,)

    def _shift(self, pipe: Any) -> float | None:
        """As the stock pipeline: linear in the number of patches."""
        config = pipe.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return None
        least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
        rows, columns = (side // pipe.transformer.config.patch_size for side in self.latent_shape[1:])
        return float(low + (rows * columns - least) * (high - low) / (most - least))

    def _told(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        return {"encoder_hidden_states": rows[0], "pooled_projections": rows[1]}

    def _call(self, x_t: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
        """The transformer has no place for t but by name."""
        output: Tensor = self.denoiser(hidden_states=x_t, timestep=t, return_dict=False, **told)[0]
        return output

    def use_attention(self, name: str, amp: torch.dtype | None = None) -> None:
        """Joint attention has torch's SDPA only."""
        if name not in ("auto", "sdpa"):
            raise InputError(f"attention '{name}' is unknown for {self.family}: use auto or sdpa")
