"""The denoiser and its text encoder, trained together from nothing on latents of real pictures.

A UNet2DConditionModel predicts the noise under Stable Diffusion's own schedule; the CLIPTextModel reads captions
through a CLIPTokenizer whose byte-pair merges were learned on them. 15 % of the captions are dropped, so that the null
prompt means something. What ships is the exponential moving average of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from selfnpo_core.system.files import write_tensors
from selfnpo_core.worlds import things
from selfnpo_core.worlds.building import fingerprint, load, progress, train_averaged
from selfnpo_image.demo import world
from selfnpo_image.demo.build.oracle import real_batch

PROMPT_DROPOUT = 0.15
MAX_TOKENS = 20
TOKENIZER_SEED = 14


def build_tokenizer(generator: torch.Generator) -> CLIPTokenizer:
    """CLIP's byte-pair encoding with merges learned on captions: every word of the world is one token.

    The captions name all things that there are pictures of, so that a model of more of them has the same tokens.
    """
    captions = captions_of_all(4000, generator)
    learner = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[],
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in learned["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def captions_of_all(count: int, generator: torch.Generator) -> list[str]:
    """As `world.draw_captions`, of all things."""
    sizes = len(things.THINGS), len(world.SIZES), len(things.GROUNDS), len(world.OPENINGS)
    *labels, opening = (torch.randint(n, (count,), generator=generator).tolist() for n in sizes)
    rows = zip(*labels, strict=True)
    return [world.caption(row, world.OPENINGS[o], things.THINGS) for row, o in zip(rows, opening, strict=True)]


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=96,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def encode_world(vae: AutoencoderKL, path: Path, *, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scaled latents (count, 4, 16, 16) of real pictures and their labels; kept on disk between runs."""
    if not path.exists():
        generator = torch.Generator().manual_seed(seed)
        latents, labels = [], []
        for _ in progress(count // 256, "latents"):
            pictures, rows = real_batch(256, generator)
            latents.append(vae.encode(pictures * 2 - 1).latent_dist.mean * vae.config.scaling_factor)
            labels.append(rows)
        write_tensors(path, {"latents": torch.cat(latents), "labels": torch.cat(labels)})
    stored = load_file(path)
    return stored["latents"], stored["labels"]


def train(
    path: Path,
    vae: AutoencoderKL,
    *,
    steps: int = 4500,
    batch: int = 64,
    lr: float = 1.2e-3,
    seed: int = 4,
    until: int | None = None,
    snapshots: Collection[int] = (),
    initial: StableDiffusionPipeline | None = None,
) -> StableDiffusionPipeline:
    """Train UNet and text encoder; returns the pipeline with their averaged weights.

    until, snapshots: as of `train_averaged`.
    initial: a pipeline of this script to go on from, rather than random weights. An interrupted training goes on from
    the state that it keeps beside `path`, every 250 updates.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = build_tokenizer(torch.Generator().manual_seed(TOKENIZER_SEED))
    net = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(tokenizer)})
    scheduler = build_scheduler()
    if path.exists():
        return assemble(load(net, path), vae, tokenizer, scheduler)
    if initial is not None:
        net["unet"].load_state_dict(initial.unet.state_dict())
        net["text_encoder"].load_state_dict(initial.text_encoder.state_dict())
    store = path.with_name(f"latents-{fingerprint(vae.encoder)}.safetensors")
    latents, labels = encode_world(vae, store, count=40_960, seed=seed)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (batch,), generator=generator)
        return _loss(net, tokenizer, scheduler, latents[rows], labels[rows], generator)

    average = train_averaged(
        net, loss_of, path, steps=steps, lr=lr, generator=generator, until=until, snapshots=snapshots
    )
    return assemble(average, vae, tokenizer, scheduler)


def _loss(
    net: nn.ModuleDict,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    x0: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """`weighted_error` of the predicted noise at a uniform timestep. x0: (B, 4, 16, 16), labels: (B, 3)."""
    captions = world.draw_captions(labels, generator)
    dropped = torch.rand(len(captions), generator=generator) < PROMPT_DROPOUT
    captions = ["" if drop else text for text, drop in zip(captions, dropped.tolist(), strict=True)]
    tokens = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    context = net["text_encoder"](tokens.input_ids)[0]
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(scheduler.config.num_train_timesteps, (len(x0),), generator=generator)
    output = net["unet"](scheduler.add_noise(x0, noise, t), t, context).sample
    return weighted_error(output, noise, scheduler.alphas_cumprod[t])


def weighted_error(output: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """The loss; signal: ᾱ_t, (B,).

    The weight is 1 / (SNR + 0.05), at least 1/2: colour and place are decided where little signal is left, and the
    plain error of the noise hardly notices them there (2303.09556 weighs by the SNR for the like reason).
    """
    weight = (1 / (signal / (1 - signal) + 0.05)).clamp(min=0.5)
    return (weight * F.mse_loss(output, noise, reduction="none").mean(dim=(1, 2, 3))).mean()


def assemble(
    net: nn.ModuleDict, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=net["text_encoder"].eval(),
        tokenizer=tokenizer,
        unet=net["unet"].eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
