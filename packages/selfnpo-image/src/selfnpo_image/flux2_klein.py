"""FLUX.2 [klein]: any `Flux2KleinPipeline`. Rectified flow on a transformer of two kinds of blocks. Only base models
run a negative branch; the distilled ones say so in their index, and their pipeline then guides at no scale.

Latents here are what the transformer is told of: patches of 2 × 2 of the VAE's, normalised by the statistics of its
batch norm, (4·C, h/2, w/2); noise is drawn in that shape. A prompt is always 512 tokens, of which those that pad it are
seen like all others. The empty text is the null prompt, and the stock pipeline has no argument for another: a negative
prompt is given to it encoded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from selfnpo_image import recipes
from selfnpo_image.flow import JOINT_ATTENTION, FlowBackbone, heads_width
from selfnpo_image.kinds import Call, ComfyForm, Kind, thirds
from selfnpo_image.texts import TOKENS

SHIFT_STEPS = 50
"""The steps for which a grid of our own is shifted: the stock pipeline shifts by steps too, and these are usual."""
TEMPLATE_TOKENS = 9
"""That stand around a prompt in its chat's template, the place for thoughts included."""
_DOUBLE = "|".join(name.replace(".", r"\.") for name in JOINT_ATTENTION)
_ATTENTION = (
    rf"transformer_blocks\.\d+\.attn\.({_DOUBLE})|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
_FEED_FORWARD = r"transformer_blocks\.\d+\.(ff|ff_context)\.linear_(in|out)"


def _check(kind: Kind, config: Mapping[str, Any], name: str) -> None:
    if config.get("guidance_embeds", True):
        raise kind.wrong(name, "distilled to run without a negative branch (guidance_embeds)")


def _negative(pipe: Any, texts: Sequence[str]) -> dict[str, Any]:
    return {"negative_prompt_embeds": pipe.encode_prompt(list(texts))[0]}


def _latents(pipe: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Those of the last step: what the pipeline returns is the VAE's."""
    last: list[Tensor] = []

    def keep(pipe: Any, index: int, t: Tensor, at: dict[str, Tensor]) -> dict[str, Tensor]:
        last[:] = [at["latents"]]
        return at

    pipe(**arguments, output_type="latent", callback_on_step_end=keep)
    rows = arguments["height"] // (2 * pipe.vae_scale_factor)
    return last[0].transpose(1, 2).unflatten(2, (rows, -1))


def _places(*sides: int, device: torch.device) -> Tensor:
    """(time, row, column, token) of every position of a grid: (n, 4)."""
    return torch.cartesian_prod(*(torch.arange(side, device=device) for side in sides))


COMFY = ComfyForm(
    blocks={"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"},
    layers={
        **thirds(("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv"),
        **thirds(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv"),
        "attn.to_out.0": ("img_attn.proj", None),
        "attn.to_add_out": ("txt_attn.proj", None),
        "ff.linear_in": ("img_mlp.0", None),
        "ff.linear_out": ("img_mlp.2", None),
        "ff_context.linear_in": ("txt_mlp.0", None),
        "ff_context.linear_out": ("txt_mlp.2", None),
        "attn.to_qkv_mlp_proj": ("linear1", None),
        "attn.to_out": ("linear2", None),
    },
    encoders={0: "qwen_3_4b.safetensors"},
    clip="flux2",
    vae="flux2-vae.safetensors",
    latents="EmptyFlux2LatentImage",
)


class Flux2Klein(FlowBackbone):
    """A FLUX.2 [klein] model as the training engine sees it."""

    kind = Kind(
        name="flux2-klein",
        title="FLUX.2 [klein]",
        examples="flux2-klein-base-4b",
        pipeline=Flux2KleinPipeline,
        presets=recipes.FLUX2_KLEIN,
        paper=recipes.SD3_PAPER,
        width=3072,
        width_of=heads_width,
        network="Flux2Transformer2DModel",
        denoiser="transformer",
        tokens={"text_encoder": TOKENS - TEMPLATE_TOKENS},
        predicts=("flow",),
        check=_check,
        granularity=lambda config: 1,
        side=64,
        pixels=lambda vae: 2 ** len(vae["block_out_channels"]),
        call=Call(negative=_negative, latents=_latents, never_guides_distilled=True),
        comfy=COMFY,
    )
    lora_targets: Mapping[str, str] = {"attention": _ATTENTION, "all": f"{_ATTENTION}|{_FEED_FORWARD}"}

    def _encode(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        tokens, _ = pipe.encode_prompt(list(texts), device=self.device, max_sequence_length=TOKENS)
        return (tokens,)

    def _encode_null(self, pipe: Any) -> tuple[Tensor, ...]:
        return self._encode(pipe, [""])

    def _shapes_of_rows(self, pipe: Any) -> tuple[tuple[int, ...], ...]:
        return ((TOKENS, pipe.transformer.config.joint_attention_dim),)

    def _shift(self, pipe: Any) -> float | None:
        if not pipe.scheduler.config.get("use_dynamic_shifting"):
            return None
        rows, columns = self.latent_shape[1:]
        return float(compute_empirical_mu(image_seq_len=rows * columns, num_steps=SHIFT_STEPS))

    def _told(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        (tokens,) = rows
        return {
            "encoder_hidden_states": tokens,
            "txt_ids": _places(1, 1, 1, tokens.shape[1], device=tokens.device),
            "img_ids": _places(1, *self.latent_shape[1:], 1, device=tokens.device),
        }

    def _call(self, x_t: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
        x = x_t.flatten(2).transpose(1, 2)
        output: Tensor = self.denoiser(hidden_states=x, timestep=t / 1000, return_dict=False, **told)[0]
        return output.transpose(1, 2).unflatten(2, x_t.shape[2:])

    def _decoded(self) -> tuple[int, ...]:
        channels, rows, columns = self.latent_shape
        return 1, channels // 4, 2 * rows, 2 * columns
