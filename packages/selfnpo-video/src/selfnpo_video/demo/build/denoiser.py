"""The transformer and its text encoder, trained together from nothing on latents of real clips.

A CogVideoXTransformer3DModel predicts v under CogVideoX's own schedule (SNR shift, zero terminal SNR); a T5EncoderModel
reads captions of at most 16 tokens, one a word. 15 % of the captions are dropped, so that the null prompt means
something. What ships is the exponential moving average of the weights.

Three batches in four are clips; the others are windows as long, cut from within longer clips and put at place `INNER`
rather than 0. A clip's first latent frame is one picture, any other stands for four: by the place the model knows which
it has before it, and so it can draw long clips window by window.
"""

from collections.abc import Collection
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from selfnpo_core.system.files import write_tensors
from selfnpo_core.worlds.building import fingerprint, load, progress, train_averaged
from selfnpo_core.worlds.things import to_uint8
from selfnpo_video.clips import set_kind
from selfnpo_video.cogvideox import COGVIDEOX
from selfnpo_video.demo import world
from selfnpo_video.positions import window_at

PROMPT_DROPOUT = 0.15
MAX_TOKENS = 16
TEXT_WIDTH = 96
MAX_WEIGHT = 5.0
INNER = 1
"""Latent frame at which a window from within a longer clip is said to begin, wherever it does: motions go on alike."""
INNER_SHARE = 0.25


def build_tokenizer() -> T5Tokenizer:
    """T5's unigram tokenizer, every word of the world one token, and letters for all others."""
    texts = (*world.THINGS, *world.DIRECTIONS, *world.SPEEDS, *world.OPENINGS, "a an that moves")
    words = {word for text in texts for word in text.split()}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in sorted(words))]
    pieces += [("▁", -20.0), *((letter, -20.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def build_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=24,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


def build_transformer() -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        time_embed_dim=128,
        text_embed_dim=TEXT_WIDTH,
        num_layers=6,
        sample_width=8,
        sample_height=8,
        sample_frames=world.FRAMES,
        patch_size=2,
        max_text_seq_length=MAX_TOKENS,
        spatial_interpolation_scale=1.0,
    )


def build_scheduler() -> CogVideoXDDIMScheduler:
    """CogVideoX-2b's schedule."""
    return CogVideoXDDIMScheduler(
        snr_shift_scale=3.0,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


@torch.no_grad()
def encode_world(
    vae: AutoencoderKLCogVideoX, path: Path, *, count: int, seed: int, frames: int = world.FRAMES
) -> tuple[Tensor, Tensor]:
    """Scaled latents (count, F, C, 8, 8) of real clips and their labels; kept on disk, unscaled, between runs."""
    if not path.exists():
        generator = torch.Generator().manual_seed(seed)
        latents, labels = [], []
        for i in progress(-(-count // 32), path.stem):
            rows = world.draw_labels(min(32, count - 32 * i), generator)
            clips = to_uint8(world.render(world.draw_clips(rows, generator, frames))) / 255
            latents.append(vae.encode(clips * 2 - 1).latent_dist.mean.permute(0, 2, 1, 3, 4))
            labels.append(rows)
        write_tensors(path, {"latents": torch.cat(latents), "labels": torch.cat(labels)})
    stored = load_file(path)
    return stored["latents"] * vae.config.scaling_factor, stored["labels"]


def train(
    path: Path,
    vae: AutoencoderKLCogVideoX,
    *,
    steps: int = 4000,
    batch: int = 48,
    lr: float = 1e-3,
    count: int = 8192,
    seed: int = 4,
    until: int | None = None,
    snapshots: Collection[int] = (),
    initial: CogVideoXPipeline | None = None,
) -> CogVideoXPipeline:
    """Train transformer and text encoder; returns the pipeline with their averaged weights.

    until, snapshots: as of `train_averaged`.
    initial: a pipeline of this script to go on from, rather than random weights. An interrupted training goes on from
    the state that it keeps beside `path`.
    """
    torch.manual_seed(seed)
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    net = nn.ModuleDict({"transformer": build_transformer(), "text_encoder": build_text_encoder(tokenizer)})
    if path.exists():
        load(net, path)
        return assemble(net, vae, tokenizer)
    if initial is not None:
        net["transformer"].load_state_dict(initial.transformer.state_dict())
        net["text_encoder"].load_state_dict(initial.text_encoder.state_dict())
    made_with = fingerprint(vae.encoder)
    store, long_store = (path.with_name(f"{name}-{made_with}.safetensors") for name in ("latents", "long-latents"))
    latents, labels = encode_world(vae, store, count=count, seed=seed)
    long, long_labels = encode_world(vae, long_store, count=count // 4, seed=seed + 1, frames=world.LONGEST)
    window = latents.shape[1]

    def loss_of(generator: torch.Generator) -> Tensor:
        if torch.rand((), generator=generator) >= INNER_SHARE:
            rows = torch.randint(len(latents), (batch,), generator=generator)
            return _loss(net, tokenizer, scheduler, latents[rows], labels[rows], generator)
        rows = torch.randint(len(long), (batch,), generator=generator)
        first = torch.randint(INNER, long.shape[1] - window + 1, (batch, 1), generator=generator)
        x0 = long[rows[:, None], first + torch.arange(window)]
        with window_at(net["transformer"], INNER):
            return _loss(net, tokenizer, scheduler, x0, long_labels[rows], generator)

    generator = torch.Generator().manual_seed(seed)
    average = train_averaged(
        net, loss_of, path, steps=steps, lr=lr, generator=generator, until=until, snapshots=snapshots
    )
    return assemble(average, vae, tokenizer)


def _loss(
    net: nn.ModuleDict,
    tokenizer: T5Tokenizer,
    scheduler: CogVideoXDDIMScheduler,
    x0: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the predicted v at a uniform timestep. x0: (B, F, C, 8, 8), labels: (B, 3).

    In terms of x̂0 this weighs by SNR + 1, here by no more than 5, so that place and motion, decided where little
    signal is left, are not drowned by the last details (the idea of min-SNR weights, 2303.09556).
    """
    captions = world.draw_captions(labels, generator)
    dropped = torch.rand(len(captions), generator=generator) < PROMPT_DROPOUT
    captions = ["" if drop else text for text, drop in zip(captions, dropped.tolist(), strict=True)]
    tokens = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(scheduler.config.num_train_timesteps, (len(x0),), generator=generator)
    x_t = scheduler.add_noise(x0, noise, t)
    with torch.autocast("cpu", torch.bfloat16):  # 1.6 times as fast where the processor multiplies them
        context = net["text_encoder"](tokens.input_ids)[0]
        output = net["transformer"](hidden_states=x_t, encoder_hidden_states=context, timestep=t, return_dict=False)[0]
    error = (output.float() - scheduler.get_velocity(x0, noise, t)).square().flatten(1).mean(dim=1)
    sigma2 = 1 - scheduler.alphas_cumprod[t]  # 1 / (SNR + 1)
    return (error * (MAX_WEIGHT * sigma2).clamp(max=1)).mean()


def assemble(net: nn.ModuleDict, vae: AutoencoderKLCogVideoX, tokenizer: T5Tokenizer) -> CogVideoXPipeline:
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=net["text_encoder"].eval(),
        vae=vae.eval(),
        transformer=net["transformer"].eval(),
        scheduler=build_scheduler(),
    )
    set_kind(pipe, COGVIDEOX)
    return pipe
