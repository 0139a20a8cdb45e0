"""A LoRA for ComfyUI, A1111 and whatever else reads kohya's files: its names, and a workflow that uses it rightly.

kohya's trainer has SD1.x in diffusers' layout and SDXL in the layout of its first release, dots made underscores:

    lora_unet_down_blocks_0_attentions_0_proj_in        .lora_down.weight (r, in[, kh, kw])    SD1.5
    lora_unet_input_blocks_4_1_proj_in                  .lora_up.weight   (out, r[, 1, 1])     SDXL
                                                        .alpha            (): the scale is alpha/r
"""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.weights.exporting import KohyaFiles
from selfnpo_core.weights.layer_names import first_release
from selfnpo_core.weights.lora_layers import Lora
from selfnpo_core.weights.npo_folder import Npo
from selfnpo_core.weights.npo_rule import Condition
from selfnpo_image.base import ImageBase
from selfnpo_image.kinds import KohyaForm
from selfnpo_image.loading import network_config, pipeline_config

ZEROES = "force_zeros_for_empty_prompt"
"""As diffusers calls it, in model_index.json."""


def files(lora: Lora, npo: Npo, base: ImageBase, beta: float, guidance_scale: float, name: str) -> KohyaFiles:
    """What `export --format kohya` writes. Of the base, only its configuration is read."""
    kind = base.kind
    assert kind.kohya is not None
    checkpoint = checkpoint_of(base)
    shown = workflow(
        name,
        side=kind.kohya.side,
        beta=beta,
        guidance_scale=guidance_scale,
        checkpoint=checkpoint,
        condition=npo.config.negative_condition if npo.config else "null",
        zeroed=zeroes_null(base),
    )
    return tensors(lora, kind.kohya, network_config(base)), shown, notes(lora, checkpoint, base)


def checkpoint_of(base: ImageBase) -> str:
    """The base as ComfyUI lists it: by its file's own name; of a folder or repository, likely the same."""
    name = Path(base.source.location).name
    return name if base.source.kind == "file" else f"{name}.safetensors"


def zeroes_null(base: ImageBase) -> bool:
    """Whether the null prompt is zeros rather than the embedding of an empty text, as SDXL's pipelines have it."""
    parameter = signature(base.kind.pipeline.__init__).parameters.get(ZEROES)
    return parameter is not None and bool(pipeline_config(base).get(ZEROES, parameter.default))


def notes(lora: Lora, checkpoint: str, base: ImageBase) -> str:
    """What to know before the workflow is run. Costs are as measured in ComfyUI 0.3.64."""
    attention = all(".attn" in layer for layer in lora)
    cost = "about 6 % more time than plain guidance" if attention else "about three times the time of plain guidance"
    named = "" if base.source.kind == "file" else f", if yours is not called {checkpoint}"
    lines = (
        f"The LoRA changes {len(lora)} layers{' of attention' if attention else ''}: its hook costs {cost}.",
        "ComfyUI adds it to weights in 16 bits: run with --fp16-unet or --fp32-unet. In bf16 a change of 1 % of a "
        "weight is off by 17 % of itself.",
        f"Put the LoRA into models/loras, and choose the checkpoint in the first node{named}.",
        "Loaded by an ordinary LoRA node it acts on both sides and makes pictures worse.",
    )
    return "\n".join(lines) + "\n"


def tensors(lora: Lora, form: KohyaForm, unet: Mapping[str, Any]) -> dict[str, Tensor]:
    """The file's tensors, float32. unet: the UNet's configuration, which numbers SDXL's blocks."""
    result = {}
    for layer, factors in lora.items():
        name = "lora_unet_" + (first_release(layer, unet) if form.first_release else layer).replace(".", "_")
        result[f"{name}.lora_down.weight"] = factors.down.float().contiguous()
        result[f"{name}.lora_up.weight"] = factors.up.float().contiguous()
        result[f"{name}.alpha"] = torch.tensor(float(factors.alpha))
    return result


def workflow(
    lora: str,
    *,
    side: int,
    beta: float,
    guidance_scale: float,
    checkpoint: str,
    condition: Condition = "null",
    zeroed: bool = False,
) -> dict[str, Any]:
    """A ComfyUI workflow (API format) with the LoRA on the negative conditioning only, by ComfyUI's own hook nodes.

    lora, checkpoint: names of files as ComfyUI lists them. side: of the picture, in pixels. condition: what the
    negative side is asked, "prompt" being the positive side's text. zeroed: the null condition is zeros.
    """
    null = {"3": node("CLIPTextEncode", text="", clip=["1", 1])}
    asked = "3"
    if condition == "prompt":
        null, asked = {}, "2"
    elif zeroed:
        null["10"], asked = node("ConditioningZeroOut", conditioning=["3", 0]), "10"
    return {
        **null,
        "1": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "2": node("CLIPTextEncode", text="a lighthouse on a cliff in a storm", clip=["1", 1]),
        "4": node("CreateHookLoraModelOnly", lora_name=lora, strength_model=beta),
        "5": node(
            "ConditioningSetProperties", cond_NEW=[asked, 0], strength=1.0, set_cond_area="default", hooks=["4", 0]
        ),
        "6": node("EmptyLatentImage", width=side, height=side, batch_size=1),
        "7": node(
            "KSampler",
            model=["1", 0],
            positive=["2", 0],
            negative=["5", 0],
            latent_image=["6", 0],
            seed=0,
            steps=25,
            cfg=guidance_scale,
            sampler_name="ddim",
            scheduler="normal",
            denoise=1.0,
        ),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="self-npo"),
    }


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
