"""A LoRA of a transformer for ComfyUI: its own model's names, and a workflow that has it on the negative side only.

ComfyUI takes a LoRA on any weight of a model by the weight's own name (the generic rule of its `comfy/lora.py`), and
its models have the names of the checkpoints that were first released:

    diffusion_model.joint_blocks.0.x_block.attn.qkv        .lora_A.weight (r, in)
                                                           .lora_B.weight (out, r)
                                                           .alpha         (): the scale is alpha/r

Where they have one matrix for q, k and v, the three factors become one of three times the rank: A is stacked, B is
block by block on the diagonal, so that B·A is the three products one below the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.weights.exporting import KohyaFiles
from selfnpo_core.weights.lora_layers import Lora
from selfnpo_core.weights.npo_folder import Npo
from selfnpo_image.base import ImageBase
from selfnpo_image.kinds import ComfyForm
from selfnpo_image.kohya import checkpoint_of, node
from selfnpo_image.models import defaults

THIRDS = 3
"""Of a matrix for q, k and v, in this order."""


def files(lora: Lora, npo: Npo, base: ImageBase, beta: float, guidance_scale: float, name: str) -> KohyaFiles:
    """What `export --format kohya` writes for a family of transformers. Nothing of the base is read."""
    form = base.kind.comfy
    assert form is not None
    if npo.config is not None and npo.config.negative_condition == "prompt":
        raise InputError(
            "the workflow of a transformer has no place for the negative condition 'prompt': use diffusers"
        )
    shown = workflow(
        name,
        form,
        beta=beta,
        guidance_scale=guidance_scale,
        steps=defaults(base).steps,
        null=base.kind.call.null or "",
        model=checkpoint_of(base),
    )
    return tensors(lora, form), shown, notes(lora)


def notes(lora: Lora) -> str:
    """What to know before the workflow is run."""
    lines = (
        f"The LoRA changes {len(lora)} layers. The workflow has not been run in ComfyUI; names of layers are its own.",
        "Put the LoRA into models/loras, and choose model, text encoders and VAE in the first nodes.",
        "ComfyUI adds a LoRA to weights in 16 bits, where bf16 loses 17 % of a change of 1 % of a weight.",
        "Loaded by an ordinary LoRA node it acts on both sides and makes pictures worse.",
    )
    return "\n".join(lines) + "\n"


def place(layer: str, form: ComfyForm) -> tuple[str, int | None]:
    """A diffusers layer's weight in ComfyUI's model: its name, and which third of it, `None` for all."""
    for start, own in form.blocks.items():
        if not layer.startswith(f"{start}."):
            continue
        number, _, rest = layer.removeprefix(f"{start}.").partition(".")
        if number.isdigit() and rest in form.layers:
            name, third = form.layers[rest]
            return f"{own}.{number}.{name}", third
        if number.isdigit() and form.same_names:
            return layer, None
    raise InputError(
        f"'{layer}' has no name in ComfyUI's model: train attention or all layers, or use --format diffusers"
    )


def tensors(lora: Lora, form: ComfyForm) -> dict[str, Tensor]:
    """The file's tensors, float32."""
    thirds: dict[str, dict[int, str]] = {}
    result: dict[str, Tensor] = {}
    for layer, factors in lora.items():
        name, third = place(layer, form)
        if third is None:
            result |= _named(name, factors.down, factors.up, float(factors.alpha))
        else:
            thirds.setdefault(name, {})[third] = layer
    for name, parts in thirds.items():
        rank, height = sum(lora[layer].rank for layer in parts.values()), lora[min(parts.values())].up.shape[0]
        up, first = torch.zeros(THIRDS * height, rank), 0
        for third, layer in parts.items():
            own = lora[layer]
            rows, columns = slice(third * height, (third + 1) * height), slice(first, first + own.rank)
            up[rows, columns] = own.up.float() * (own.alpha / own.rank)
            first += own.rank
        result |= _named(name, torch.cat([lora[layer].down for layer in parts.values()]), up, float(rank))
    return result


def _named(name: str, down: Tensor, up: Tensor, alpha: float) -> dict[str, Tensor]:
    return {
        f"diffusion_model.{name}.lora_A.weight": down.float().contiguous(),
        f"diffusion_model.{name}.lora_B.weight": up.float().contiguous(),
        f"diffusion_model.{name}.alpha": torch.tensor(alpha),
    }


def workflow(
    lora: str, form: ComfyForm, *, beta: float, guidance_scale: float, steps: int, null: str, model: str
) -> dict[str, Any]:
    """A ComfyUI workflow (API format) with the LoRA on the negative conditioning only, by ComfyUI's own hook nodes.

    lora, model: names of files as ComfyUI lists them. null: the negative text.
    """
    texts: Mapping[str, Any] = {f"clip_name{i or ''}": name for i, name in form.encoders.items()}
    loader = {1: "CLIPLoader", 3: "TripleCLIPLoader"}[len(texts)]
    kind = {"type": form.clip} if form.clip else {}
    return {
        "1": node("UNETLoader", unet_name=model, weight_dtype="default"),
        "2": node(loader, **texts, **kind),
        "3": node("VAELoader", vae_name=form.vae),
        "4": node("CLIPTextEncode", text="a lighthouse on a cliff in a storm", clip=["2", 0]),
        "5": node("CLIPTextEncode", text=null, clip=["2", 0]),
        "6": node("CreateHookLoraModelOnly", lora_name=lora, strength_model=beta),
        "7": node(
            "ConditioningSetProperties", cond_NEW=["5", 0], strength=1.0, set_cond_area="default", hooks=["6", 0]
        ),
        "8": node(form.latents, width=1024, height=1024, batch_size=1),
        "9": node(
            "KSampler",
            model=["1", 0],
            positive=["4", 0],
            negative=["7", 0],
            latent_image=["8", 0],
            seed=0,
            steps=steps,
            cfg=guidance_scale,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "10": node("VAEDecode", samples=["9", 0], vae=["3", 0]),
        "11": node("SaveImage", images=["10", 0], filename_prefix="self-npo"),
    }
