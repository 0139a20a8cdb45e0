"""The Qwen-Image family (2508.02324): any `QwenImagePipeline`. Rectified flow on a joint transformer.

Its stock pipeline asks the transformer once a branch and gives the guided prediction the conditional one's norm, token
by token: v̂ = v·‖v(c)‖/‖v‖ with v = v(∅) + g·(v(c) − v(∅)). What samples are drawn with here is that pipeline, with its
norm; a teacher's guidance in training (`teacher_guidance`) has none. The null prompt is a single space, which its
authors' own code gives where nothing is given; without any negative prompt the pipeline runs no second branch.

Latents are the VAE's, (C, h, w). The transformer is told of patches of 2 × 2 of them, and of the texts' tokens, 512 at
most, without the template that they were encoded in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from selfnpo_core.models.backbone import has_numbers
from selfnpo_image import recipes
from selfnpo_image.flow import JOINT_ATTENTION, FlowBackbone, heads_width, shift_by_size
from selfnpo_image.kinds import Call, ComfyForm, Kind
from selfnpo_image.texts import TOKENS, cut, padded

NULL_PROMPT = " "
TEMPLATE_TOKENS = 5
"""That stand behind a prompt in its template, and are read with it."""
_FEED_FORWARD = [f"{name}.net.{part}" for name in ("img_mlp", "txt_mlp") for part in ("0.proj", "2")]


def _check(kind: Kind, config: Mapping[str, Any], name: str) -> None:
    for key in ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
        if config.get(key):
            raise kind.wrong(name, f"a model for editing or layers ({key})")
    if config.get("guidance_embeds"):
        raise kind.wrong(name, "distilled to run without a negative branch (guidance_embeds)")


def _halvings(vae: Mapping[str, Any]) -> int:
    return int(2 ** len(vae["temperal_downsample"]))


def packed(x: Tensor) -> Tensor:
    """Latents (B, C, 2h, 2w) as patches (B, h·w, 4·C)."""
    batch, channels, rows, columns = x.shape
    patches = x.reshape(batch, channels, rows // 2, 2, columns // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, rows * columns // 4, 4 * channels)


def unpacked(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Patches (B, h·w, 4·C) as latents (B, C, rows, columns)."""
    batch, _, width = patches.shape
    x = patches.reshape(batch, rows // 2, columns // 2, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, width // 4, rows, columns)


def _latents(pipe: Any, arguments: Mapping[str, Any]) -> Tensor:
    patches: Tensor = pipe(**arguments, output_type="latent").images
    rows, columns = (arguments[side] // pipe.vae_scale_factor for side in ("height", "width"))
    return unpacked(patches, rows, columns)


COMFY = ComfyForm(
    blocks={"transformer_blocks": "transformer_blocks"},
    same_names=True,
    encoders={0: "qwen_2.5_vl_7b.safetensors"},
    clip="qwen_image",
    vae="qwen_image_vae.safetensors",
    latents="EmptySD3LatentImage",
)


class QwenImage(FlowBackbone):
    """A model of the Qwen-Image family as the training engine sees it."""

    kind = Kind(
        name="qwen-image",
        title="Qwen-Image",
        examples="qwen-image",
        pipeline=QwenImagePipeline,
        presets=recipes.QWEN_IMAGE,
        paper=recipes.SD3_PAPER,
        width=3072,
        width_of=heads_width,
        network="QwenImageTransformer2DModel",
        denoiser="transformer",
        tokens={"text_encoder": TOKENS - TEMPLATE_TOKENS},
        predicts=("flow",),
        check=_check,
        granularity=lambda config: 2,
        side=128,
        pixels=_halvings,
        call=Call(guidance=lambda scale: {"true_cfg_scale": scale}, null=NULL_PROMPT, latents=_latents),
        comfy=COMFY,
    )
    lora_targets: Mapping[str, Sequence[str]] = {
        "attention": JOINT_ATTENTION,
        "all": [*JOINT_ATTENTION, *_FEED_FORWARD],
    }

    def _describe(self, pipe: Any, height: int | None, width: int | None) -> None:
        super()._describe(pipe, height, width)
        network: Any = self.denoiser
        if has_numbers(network.proj_out.weight):
            # It keeps its tables of positions where it first made them, which must not be a simulation.
            network.pos_embed(self._pictures(1), max_txt_seq_len=TOKENS, device=torch.device("cpu"))

    def _channels(self, network: Any) -> int:
        return int(network.in_channels) // 4

    def _encode(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        tokens, mask = pipe.encode_prompt(list(texts), device=self.device, max_sequence_length=TOKENS)
        lengths = [len(row) for row in tokens] if mask is None else mask.sum(1).tolist()
        return padded([row[:length] for row, length in zip(tokens, lengths, strict=True)])

    def _encode_null(self, pipe: Any) -> tuple[Tensor, ...]:
        return self._encode(pipe, [NULL_PROMPT])

    def _shapes_of_rows(self, pipe: Any) -> tuple[tuple[int, ...], ...]:
        return (TOKENS, pipe.transformer.config.joint_attention_dim), (TOKENS,)

    def _shift(self, pipe: Any) -> float | None:
        rows, columns = self.latent_shape[1:]
        return shift_by_size(pipe.scheduler.config, rows * columns // 4, most=1.15)

    def _arguments(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        tokens, mask = cut(*rows)
        seen = torch.ones(tokens.shape[:2], device=tokens.device) if mask is None else mask
        return {"prompt_embeds": tokens, "prompt_embeds_mask": seen.long()}

    def _pictures(self, count: int) -> list[list[tuple[int, int, int]]]:
        rows, columns = self.latent_shape[1:]
        return [[(1, rows // 2, columns // 2)]] * count

    def _told(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        tokens, mask = cut(*rows)
        return {
            "encoder_hidden_states": tokens,
            "encoder_hidden_states_mask": mask,
            "img_shapes": self._pictures(len(tokens)),
        }

    def _call(self, x_t: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
        output: Tensor = self.denoiser(hidden_states=packed(x_t), timestep=t / 1000, return_dict=False, **told)[0]
        return unpacked(output, *x_t.shape[2:])

    def _decoded(self) -> tuple[int, ...]:
        """A clip of one frame."""
        channels, rows, columns = self.latent_shape
        return 1, channels, 1, rows, columns
