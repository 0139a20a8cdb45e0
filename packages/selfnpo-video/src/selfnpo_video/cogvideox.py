"""CogVideoX (2408.06072): how its parts are asked, and its backbone.

2b has sine-cosine positions, 5b and 1.5 rotary ones, 1.5 also patches two latent frames at a time. All predict v, with
an SNR shift and zero terminal SNR, which the checkpoint's own scheduler configuration tells.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch import Tensor
from transformers import T5EncoderModel

from selfnpo_core.errors import InputError
from selfnpo_core.models.backbone import has_numbers
from selfnpo_video import recipes
from selfnpo_video.attention import use_attention
from selfnpo_video.backbone import VideoBackbone, unwrapped
from selfnpo_video.kinds import VideoBase, VideoKind, check_numbers
from selfnpo_video.positions import COGVIDEOX_TIME, Rotary, rotary_positions, window_at
from selfnpo_video.shapes import ClipSize, Compression

FORWARD = 12.6
"""Peak of a transformer's forward: this many tensors of (rows, tokens, width)."""
DECODE = {"cpu": 75.0, "cuda": 24.0}
"""Peak of decoding a chunk: this many tensors of (frames, height, width, channels of the VAE's last block).

CPU kernels unfold a convolution's 27 inputs, which is two thirds of it; the figure for GPUs is what is left, and has
not been measured.
"""
TILES, TILED = 1.5, 3.5
"""Decoding by tiles holds all frames: so many of (frames, H, W, 3) in overlapping tiles while they are decoded, and in
tiles, rows of tiles and the result afterwards."""
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
"""Of the known models' text encoder, T5 1.1's largest: 4,762,310,656 parameters."""


class CogVideoXKind(VideoKind):
    """How all but the backbone asks a CogVideoX model."""

    def compression(self, transformer: Any, vae: Any) -> Compression:
        space = 2 ** (len(vae.block_out_channels) - 1)
        fixed = None
        if transformer.use_learned_positional_embeddings:
            fixed = ClipSize(
                frames=transformer.sample_frames,
                height=transformer.sample_height * space,
                width=transformer.sample_width * space,
            )
        return Compression(
            time=int(vae.temporal_compression_ratio),
            space=space,
            patch=transformer.patch_size,
            patch_time=transformer.patch_size_t or 1,
            channels=transformer.out_channels,
            fixed=fixed,
            largest=None
            if transformer.patch_size_t is None
            else (transformer.sample_height * space, transformer.sample_width * space),
        )

    def text(self, transformer: Any) -> tuple[int, int]:
        return int(transformer.max_text_seq_length), int(transformer.text_embed_dim)

    def check(self, base: VideoBase) -> None:
        config = base.transformer
        always = ["patch_size", "max_text_seq_length", "text_embed_dim", "out_channels"]
        always += ["num_attention_heads", "attention_head_dim"]
        sizes = ["sample_frames", "sample_height", "sample_width"]
        fixed = config.use_learned_positional_embeddings or config.patch_size_t is not None
        wanted = [(config, "transformer", key, fixed) for key in sizes]
        wanted += [(config, "transformer", key, True) for key in always]
        of_vae = ("temporal_compression_ratio", "sample_height", "sample_width")
        check_numbers(base.name, [*wanted, *((base.vae, "vae", key, True) for key in of_vae)])
        if not isinstance(base.vae.block_out_channels, list | tuple):
            raise InputError(f"model {base.name} has no list of block_out_channels in vae/config.json: correct it")

    def predicts(self, scheduler: Any, name: str) -> str:
        return str(scheduler.config.prediction_type)

    def rescheduled(self, scheduler: Any, word: str) -> Any:
        """With trailing timesteps, as CogVideoX's own sampling has them."""
        made = next(made for name, made in self.schedulers.items() if word in name.lower())
        return made.from_config(scheduler.config, timestep_spacing="trailing")

    def one_at_a_time(self, scheduler: Any) -> bool:
        return isinstance(scheduler, CogVideoXDPMScheduler)

    def call(self, config: Any, *, dynamic_guidance: bool) -> dict[str, Any]:
        return {"use_dynamic_cfg": dynamic_guidance}

    def encode(self, encoder: Any, tokenizer: Any, text: str, tokens: int, device: torch.device) -> Tensor:
        padded = tokenizer(text, padding="max_length", max_length=tokens, truncation=True)
        row: Tensor = encoder(torch.tensor([padded.input_ids], device=device))[0][0]
        return row

    def use_attention(self, network: Any, name: str, device: torch.device, dtype: torch.dtype) -> str:
        return use_attention(network, name, device, dtype)

    def denoising_bytes(self, base: VideoBase, *, rows: int, patches: int, itemsize: int) -> int:
        config = base.transformer
        channels = config.num_attention_heads * config.attention_head_dim
        return int(FORWARD * rows * (patches + config.max_text_seq_length) * channels * itemsize)

    def decoding_bytes(self, vae: Any, size: ClipSize, dtype: torch.dtype, device: str, *, tiling: bool) -> int:
        chunk = 9 if size.frames > 1 else 1  # the first three latent frames, at most
        factor = DECODE.get(device, DECODE["cuda"]) * chunk * vae.block_out_channels[0]
        if not tiling:
            return int(factor * size.height * size.width * dtype.itemsize)
        height, width = min(size.height, vae.sample_height // 2), min(size.width, vae.sample_width // 2)
        whole = size.frames * size.height * size.width * 3
        return int(max(factor * height * width + TILES * whole, TILED * whole) * dtype.itemsize)


COGVIDEOX = CogVideoXKind(
    name="cogvideox",
    title="CogVideoX",
    example="cogvideox-2b",
    presets=recipes.COGVIDEOX,
    paper=recipes.COGVIDEOX_PAPER,
    width=1920,
    pipeline=CogVideoXPipeline,
    from_image=CogVideoXImageToVideoPipeline,
    network=CogVideoXTransformer3DModel,
    vae=AutoencoderKLCogVideoX,
    encoder=T5EncoderModel,
    encoder_config=T5_XXL,
    schedulers={made.__name__: made for made in (CogVideoXDDIMScheduler, CogVideoXDPMScheduler)},
    wants="its own DDIM or DPM",
    scheduler={
        "_class_name": "CogVideoXDDIMScheduler",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    time=COGVIDEOX_TIME,
)
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_TARGETS = {
    "attention": _ATTENTION,
    "all": [*_ATTENTION, "ff.net.0.proj", "ff.net.2", "norm1.linear", "norm2.linear", "proj_out"],
}


class CogVideoX(VideoBackbone):
    """A CogVideoX text-to-video model as the training engine sees it."""

    kind = COGVIDEOX
    lora_targets: Mapping[str, Sequence[str] | str] = LORA_TARGETS

    def _describe(self, base: VideoBase, frames: int | None, height: int | None, width: int | None) -> None:
        if base.from_image:
            raise InputError(
                f"model {self.name} turns images into video, and training wants text to video: train "
                f"{self._sibling(base)}, whose LoRA serves this one too (sample --other-base)"
            )
        self._rotary: dict[tuple[int, int, torch.device], Rotary | None] = {}
        super()._describe(base, frames, height, width)

    @staticmethod
    def _sibling(base: VideoBase) -> str:
        """From text alone, of an image-to-video model."""
        return "its text-to-video sibling" if base.known is None else base.known.name.removesuffix("-i2v")

    def _ask(self, x_t: Tensor, t: Tensor, context: Tensor, first: int) -> Tensor:
        with window_at(unwrapped(self.denoiser, CogVideoXTransformer3DModel), first):
            output: Tensor = self.denoiser(
                hidden_states=x_t,
                encoder_hidden_states=context,
                timestep=t,
                image_rotary_emb=self._rotary_at(x_t, first),
                return_dict=False,
            )[0]
        return output

    def _rotary_at(self, x_t: Tensor, first: int) -> Rotary | None:
        """Kept for the next call, unless x_t is of a simulation, whose tensors are worth nothing after it."""
        if not has_numbers(x_t):
            return self._make_rotary(x_t, first)
        key = (x_t.shape[1], first, x_t.device)
        if key not in self._rotary:
            self._rotary[key] = self._make_rotary(x_t, first)
        return self._rotary[key]

    def _make_rotary(self, x_t: Tensor, first: int) -> Rotary | None:
        found = rotary_positions(
            unwrapped(self.denoiser, CogVideoXTransformer3DModel), x_t.shape[1], *x_t.shape[3:], first=first
        )
        return None if found is None else (found[0].to(x_t.device), found[1].to(x_t.device))
