"""An SDXL-class model of the demo's world, built on demand: a true `StableDiffusionXLPipeline`.

Its UNet and first text encoder begin as those of the shipped model, with what SDXL has more: a second text encoder with
a pooled output, the size and crop of the picture, zeros for the null prompt. The autoencoder is the shipped one.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from selfnpo_core.worlds.building import fingerprint, train_averaged
from selfnpo_image.demo import world
from selfnpo_image.demo.build.denoiser import MAX_TOKENS, PROMPT_DROPOUT, encode_world, weighted_error

WIDTH, TIME = 64, 16
"""Of the second text encoder, and of each of the six numbers' embeddings."""


def build_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    """config: of the shipped model's UNet."""
    return UNet2DConditionModel.from_config(
        {
            **config,
            "cross_attention_dim": config["cross_attention_dim"] + WIDTH,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME,
            "projection_class_embeddings_input_dim": WIDTH + 6 * TIME,
        }
    )


@torch.no_grad()
def begin_as(unet: nn.Module, shipped: nn.Module) -> None:
    """Copy what both have. Keys and values do not see the second encoder yet, and nothing sees what is added."""
    state, known = unet.state_dict(), shipped.state_dict()
    for name, tensor in state.items():
        if name not in known:
            assert name.startswith("add_embedding")
            continue
        old = known[name].reshape(known[name].shape[: tensor.dim()])  # 1×1 convolutions are linear layers here
        tensor.zero_()
        tensor[tuple(slice(n) for n in old.shape)] = old
    state["add_embedding.linear_2.weight"].zero_()
    state["add_embedding.linear_2.bias"].zero_()


def build(shipped: Any) -> StableDiffusionXLPipeline:
    """The untrained pipeline. shipped: the demo's, whose parts it takes over."""
    tokenizer = shipped.tokenizer
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = build_unet(dict(shipped.unet.config))
    begin_as(unet, shipped.unet)
    return StableDiffusionXLPipeline(
        vae=shipped.vae,
        text_encoder=shipped.text_encoder,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def train(
    path: Path,
    shipped: Any,
    *,
    steps: int = 1500,
    batch: int = 64,
    lr: float = 6e-4,
    count: int = 20_480,
    seed: int = 7,
) -> StableDiffusionXLPipeline:
    """Train UNet and both text encoders; returns the pipeline with their averaged weights.

    An interrupted training goes on from the state that it keeps beside `path`.
    """
    torch.manual_seed(seed)
    pipe = build(shipped)
    parts = ("unet", "text_encoder", "text_encoder_2")
    net = nn.ModuleDict({name: getattr(pipe, name).train() for name in parts})
    store = path.with_name(f"latents-{fingerprint(pipe.vae.encoder)}.safetensors")
    latents, labels = encode_world(pipe.vae, store, count=count, seed=seed)
    noise_levels = pipe.scheduler.alphas_cumprod

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (batch,), generator=generator)
        captions = world.draw_captions(labels[rows], generator)
        kept = torch.rand(batch, generator=generator) >= PROMPT_DROPOUT
        noise = torch.randn(latents[rows].shape, generator=generator)
        t = torch.randint(len(noise_levels), (batch,), generator=generator)
        signal = noise_levels[t][:, None, None, None]
        x_t = signal.sqrt() * latents[rows] + (1 - signal).sqrt() * noise
        return weighted_error(_predict(net, pipe.tokenizer, x_t, t, captions, kept), noise, noise_levels[t])

    average = train_averaged(net, loss_of, path, steps=steps, lr=lr, generator=torch.Generator().manual_seed(seed))
    pipe.register_modules(**{name: average[name].eval() for name in parts})
    return pipe


def _predict(net: nn.ModuleDict, tokenizer: Any, x_t: Tensor, t: Tensor, captions: list[str], kept: Tensor) -> Tensor:
    """As `StableDiffusionXLPipeline` asks: the last layer but one of both encoders, zeros where no prompt is kept."""
    ids = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    first = net["text_encoder"](ids, output_hidden_states=True).hidden_states[-2]
    second = net["text_encoder_2"](ids, output_hidden_states=True)
    tokens = torch.cat([first, second.hidden_states[-2]], dim=-1) * kept[:, None, None]
    sizes = torch.tensor([world.SIDE, world.SIDE, 0, 0, world.SIDE, world.SIDE], dtype=x_t.dtype).expand(len(x_t), -1)
    added = {"text_embeds": second.text_embeds * kept[:, None], "time_ids": sizes}
    output: Tensor = net["unet"](x_t, t, tokens, added_cond_kwargs=added).sample
    return output
