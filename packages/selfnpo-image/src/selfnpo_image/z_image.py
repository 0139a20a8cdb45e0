"""The Z-Image family (2511.22699): any `ZImagePipeline` that runs both branches. Rectified flow on a single stream.

Its stock pipeline has a word of its own for nearly all of this. Its guidance scale is w = g − 1 of
v(c) + w·(v(c) − v(∅)), with 0 for none; ours is g everywhere. Its transformer is told 1 − t in place of t and answers
data − noise in place of noise − data; the positive branch is the batch's first half; latents and texts are lists of a
tensor a row, texts of their own lengths. The empty text, in its chat's template, is the null prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from selfnpo_core.models.backbone import has_numbers
from selfnpo_image import recipes
from selfnpo_image.flow import ATTENTION, FlowBackbone
from selfnpo_image.kinds import Call, ComfyForm, Kind, thirds
from selfnpo_image.texts import TOKENS, apart, padded


def _check(kind: Kind, config: Mapping[str, Any], name: str) -> None:
    if config.get("siglip_feat_dim"):
        raise kind.wrong(name, "an editing model (siglip_feat_dim)")


def _width(config: Mapping[str, Any]) -> int | None:
    width = config.get("dim")
    return width if isinstance(width, int) else None


COMFY = ComfyForm(
    blocks={name: name for name in ("layers", "noise_refiner", "context_refiner")},
    layers={
        **thirds(("attention.to_q", "attention.to_k", "attention.to_v"), "attention.qkv"),
        "attention.to_out.0": ("attention.out", None),
    },
    same_names=True,
    encoders={0: "qwen_3_4b.safetensors"},
    clip="lumina2",
    vae="ae.safetensors",
    latents="EmptySD3LatentImage",
)


class ZImage(FlowBackbone):
    """A model of the Z-Image family as the training engine sees it."""

    kind = Kind(
        name="z-image",
        title="Z-Image",
        examples="z-image",
        pipeline=ZImagePipeline,
        presets=recipes.Z_IMAGE,
        paper=recipes.SD3_PAPER,
        width=3840,
        width_of=_width,
        network="ZImageTransformer2DModel",
        denoiser="transformer",
        tokens={"text_encoder": TOKENS},
        predicts=("flow",),
        check=_check,
        granularity=lambda config: 2,
        side=128,
        call=Call(guidance=lambda scale: {"guidance_scale": scale - 1}),
        comfy=COMFY,
    )
    lora_targets: Mapping[str, Sequence[str]] = {
        "attention": ATTENTION,
        "all": [*ATTENTION, *(f"feed_forward.w{number}" for number in (1, 2, 3))],
    }

    def _encode(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        rows, _ = pipe.encode_prompt(
            list(texts), device=self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        return padded(rows)

    def _encode_null(self, pipe: Any) -> tuple[Tensor, ...]:
        return self._encode(pipe, [""])

    def _shapes_of_rows(self, pipe: Any) -> tuple[tuple[int, ...], ...]:
        return (TOKENS, pipe.transformer.config.cap_feat_dim), (TOKENS,)

    def _arguments(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        return {"prompt_embeds": apart(*rows)}

    def _told(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        return {"cap_feats": apart(*rows)}

    def _call(self, x_t: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
        positions = None if has_numbers(x_t) else getattr(self.denoiser, "rope_embedder", None)
        known = getattr(positions, "freqs_cis", None)
        try:
            x = list(x_t.unsqueeze(2).unbind())
            output: list[Tensor] = self.denoiser(x, (1000 - t) / 1000, told["cap_feats"], return_dict=False)[0]
        finally:
            if positions is not None:  # a table made in a simulation is worth nothing afterwards
                positions.freqs_cis = known
        return -torch.stack(output).squeeze(2)
