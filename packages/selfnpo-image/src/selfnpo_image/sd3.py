"""The SD3 family (2403.03206): any `StableDiffusion3Pipeline`, SD3 and SD3.5. Rectified flow on a joint transformer.

T5 may be left out of a model; its tokens are then zeros, as in the stock pipeline. The prompt's tokens are 77 of CLIP's
and 256 of T5's, the stock pipeline's default.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from selfnpo_image import recipes
from selfnpo_image.flow import JOINT_ATTENTION, FlowBackbone, heads_width, shift_by_size
from selfnpo_image.kinds import ComfyForm, Kind, thirds

T5_TOKENS = 256
_FEED_FORWARD = [f"{name}.net.{part}" for name in ("ff", "ff_context") for part in ("0.proj", "2")]


def _check(kind: Kind, config: Mapping[str, Any], name: str) -> None:
    if config.get("in_channels", 16) != (config.get("out_channels") or config.get("in_channels", 16)):
        raise kind.wrong(name, f"an editing model ({config['in_channels']} input channels)")


COMFY = ComfyForm(
    blocks={"transformer_blocks": "joint_blocks"},
    layers={
        **thirds(("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn.qkv"),
        **thirds(("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.qkv"),
        **thirds(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "context_block.attn.qkv"),
        "attn.to_out.0": ("x_block.attn.proj", None),
        "attn2.to_out.0": ("x_block.attn2.proj", None),
        "attn.to_add_out": ("context_block.attn.proj", None),
        "ff.net.0.proj": ("x_block.mlp.fc1", None),
        "ff.net.2": ("x_block.mlp.fc2", None),
        "ff_context.net.0.proj": ("context_block.mlp.fc1", None),
        "ff_context.net.2": ("context_block.mlp.fc2", None),
    },
    encoders={1: "clip_l.safetensors", 2: "clip_g.safetensors", 3: "t5xxl_fp16.safetensors"},
    clip="",
    vae="sd3_vae.safetensors",
    latents="EmptySD3LatentImage",
)


class SD3(FlowBackbone):
    """A model of the SD3 family as the training engine sees it."""

    kind = Kind(
        name="sd3",
        title="SD3",
        examples="sd3.5-medium",
        pipeline=StableDiffusion3Pipeline,
        presets=recipes.SD3,
        paper=recipes.SD3_PAPER,
        width=1536,
        width_of=heads_width,
        network="SD3Transformer2DModel",
        denoiser="transformer",
        text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        optional=("text_encoder_3",),
        tokens={"text_encoder_3": T5_TOKENS},
        left_out={"image_encoder": None, "feature_extractor": None},
        predicts=("flow",),
        check=_check,
        granularity=lambda config: int(config.patch_size),
        comfy=COMFY,
    )
    lora_targets: Mapping[str, Sequence[str]] = {
        "attention": JOINT_ATTENTION,
        "all": [*JOINT_ATTENTION, *_FEED_FORWARD],
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
        rows, columns = (side // pipe.transformer.config.patch_size for side in self.latent_shape[1:])
        return shift_by_size(pipe.scheduler.config, rows * columns, most=1.16)

    def _told(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        return {"encoder_hidden_states": rows[0], "pooled_projections": rows[1]}

    def _call(self, x_t: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
        """The transformer has no place for t but by name."""
        output: Tensor = self.denoiser(hidden_states=x_t, timestep=t, return_dict=False, **told)[0]
        return output
