"""Wan 2.1 and Wan 2.2 TI2V-5B, from text (2503.20314): how their parts are asked, and their backbone.

Rectified flow, shifted as the checkpoint's scheduler says. The pipeline asks the two branches one after the other, the
prompt's first. Its latents are (B, C, F, h, w), ours (B, F, C, h, w). Of 5B each token has a timestep of its own, which
are all the same where no picture is given. The VAE is float32, as its users run it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from transformers import UMT5EncoderModel

from selfnpo_core.adapters.hooks import bare
from selfnpo_core.errors import InputError
from selfnpo_core.models.loading import quiet
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_video import recipes
from selfnpo_video.attention import choose
from selfnpo_video.backbone import VideoBackbone, unwrapped
from selfnpo_video.kinds import VideoBase, VideoKind, check_numbers
from selfnpo_video.positions import TimeAxis
from selfnpo_video.shapes import ClipSize, Compression
from selfnpo_video.streaming import decode_stream

TOKENS = 512
"""Of a prompt, by the pipeline's default."""
BACKENDS = {"sdpa": "native", "xformers": "xformers", "flash": "_native_flash"}
"""diffusers' names of what computes attention."""
KERNELS = {
    name: partial(dispatch_attention_fn, backend=AttentionBackendName(BACKENDS[name])) for name in ("xformers", "flash")
}
FORWARD, WIDENED, OF_TOKENS = 4.3, 2.0, 13.0
"""Peak of a transformer's forward: this many tensors of (rows, tokens, width), of (rows, tokens, ffn_dim), and more of
the first where each token has a timestep of its own."""
DECODE, RESIDUAL = {"cpu": 40.0, "cuda": 13.0}, 1.9
"""Peak of decoding a latent frame: this many tensors of (frames, height, width, channels of the VAE's last block), and
that times more with Wan 2.2's residual blocks.

CPU kernels unfold a convolution's 27 inputs, which is two thirds of it; the figure for GPUs is what is left, and has
not been measured."""
TILES, TILED = 2.0, {1: 4.7, 2: 8.4}
"""Decoding by tiles holds all frames: so many of (frames, H, W, 3) in overlapping tiles while they are decoded, and,
by the VAE's patch, in tiles, rows of tiles and the result afterwards."""
TILE = 256
"""Pixels, AutoencoderKLWan's own."""


class WanTime(TimeAxis):
    """Of (B, C, F, h, w); rotary positions are made in the network's own forward."""

    dim = 2

    def step(self, config: Any) -> int:
        return int(config.patch_size[0])

    @contextmanager
    def window(
        self, network: Any, given: Mapping[str, Any], whole: int, part: slice, first: int
    ) -> Iterator[dict[str, Any]]:
        own = dict(given)
        if own["timestep"].ndim == 2:  # one a token, frame after frame
            tokens = own["timestep"].shape[1]
            own["timestep"] = own["timestep"][:, tokens * part.start // whole : tokens * part.stop // whole]
        with rope_at(bare(network), first):
            yield own


@contextmanager
def rope_at(network: Any, first: int) -> Iterator[None]:
    """Within the block, rotary positions are those of a clip's frames from latent frame `first` on."""
    if first == 0:
        yield
        return

    def shift(rope: Any, args: tuple[Tensor, ...], _output: Any) -> tuple[Tensor, ...]:
        frames, height, width = args[0].shape[2:]
        whole = rope.forward(torch.empty((1, 1, first + frames, height, width), device="meta"))  # by its shape alone
        skipped = whole[0].shape[1] * first // (first + frames)
        return tuple(table[:, skipped:] for table in whole)

    handle = network.rope.register_forward_hook(shift)
    try:
        yield
    finally:
        handle.remove()


@decode_stream.register(AutoencoderKLWan)
def _decode_wan(vae: AutoencoderKLWan, latents: Tensor) -> Iterator[Tensor]:
    """A chunk is one latent frame, as in diffusers' own decoding, whose cache of features goes from one to the next."""
    z = latents.transpose(1, 2)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(z.device, z.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    z = z / (1.0 / std) + mean  # as the pipeline does, to the bit
    if vae.use_tiling:
        yield vae.decode(z).sample
        return
    z, patch = vae.post_quant_conv(z), vae.config.patch_size
    features: list[Any] = [None] * sum(isinstance(layer, WanCausalConv3d) for layer in vae.decoder.modules())
    for k in range(z.shape[2]):
        frames = vae.decoder(z[:, :, k : k + 1], feat_cache=features, feat_idx=[0], first_chunk=k == 0)
        yield (frames if patch is None else unpatchify(frames, patch_size=patch)).clamp(-1.0, 1.0)


class WanKind(VideoKind):
    """How all but the backbone asks a Wan model."""

    def compression(self, transformer: Any, vae: Any) -> Compression:
        steps, patch, _ = transformer.patch_size
        return Compression(
            time=int(vae.scale_factor_temporal),
            space=int(vae.scale_factor_spatial),
            patch=int(patch),
            patch_time=int(steps),
            channels=int(transformer.in_channels),
            chunk=1,
        )

    def text(self, transformer: Any) -> tuple[int, int]:
        return TOKENS, int(transformer.text_dim)

    def check_index(self, index: Mapping[str, Any], name: str) -> None:
        second = index.get("transformer_2")
        if index.get("boundary_ratio") is not None or (isinstance(second, list) and second[:1] != [None]):
            raise InputError(
                f"model {name} has two experts (Wan 2.2 A14B), which is not supported: give one with a single "
                f"transformer, such as {self.example}"
            )

    def check(self, base: VideoBase) -> None:
        config, vae, name = base.transformer, base.vae, base.name
        keys = ("num_attention_heads", "attention_head_dim", "text_dim", "ffn_dim", "in_channels", "rope_max_seq_len")
        of_vae = ("z_dim", "base_dim", "scale_factor_temporal", "scale_factor_spatial")
        check_numbers(name, [(config, "transformer", key, True) for key in keys])
        check_numbers(name, [(vae, "vae", key, True) for key in of_vae])
        patch = config.patch_size
        sides = patch if isinstance(patch, list | tuple) and len(patch) == 3 else (0, 0, 0)
        if not all(isinstance(side, int) and side > 0 for side in sides) or sides[1] != sides[2]:
            raise InputError(f"model {name} has patch_size {patch} in transformer/config.json: correct it to (1, 2, 2)")
        given = config.in_channels
        if given != vae.z_dim or config.image_dim is not None or config.added_kv_proj_dim is not None:
            what = f"{given} input channels for latents of {vae.z_dim}" if given != vae.z_dim else "told of an image"
            raise InputError(
                f"model {name} does not draw from text alone ({what}): image to video and editing are not supported "
                f"for {self.title}, give one such as {self.example}"
            )
        for key in ("latents_mean", "latents_std"):
            if not isinstance(getattr(vae, key), list | tuple) or len(getattr(vae, key)) != vae.z_dim:
                raise InputError(f"model {name} has no {key} of {vae.z_dim} numbers in vae/config.json: get it again")

    def predicts(self, scheduler: Any, name: str) -> str:
        config = scheduler.config
        fits = NoiseSchedule.from_scheduler(scheduler).is_flow and not config.get("use_dynamic_shifting")
        if not fits or config.get("prediction_type", "flow_prediction") != "flow_prediction":
            raise InputError(
                f"model {name} has a {type(scheduler).__name__} that is not of flow matching with one shift: "
                f"{self.title} wants {self.wants}"
            )
        return "flow"

    def rescheduled(self, scheduler: Any, word: str) -> Any:
        """With the model's own shift."""
        config = scheduler.config
        steps, shift = config.num_train_timesteps, config.get("flow_shift") or config.get("shift") or 1.0
        if word == "euler":
            return FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps, shift=shift)
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        return UniPCMultistepScheduler(num_train_timesteps=steps, **flow)

    def call(self, config: Any, *, dynamic_guidance: bool) -> dict[str, Any]:
        if dynamic_guidance:
            raise InputError("--dynamic-guidance is of CogVideoX: leave it out")
        return {}

    def encode(self, encoder: Any, tokenizer: Any, text: str, tokens: int, device: torch.device) -> Tensor:
        """With zeros for what stands after the text."""
        asked = tokenizer(
            prompt_clean(text), padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"
        )
        ids, mask = asked.input_ids.to(device), asked.attention_mask.to(device)
        row: Tensor = encoder(ids, mask).last_hidden_state[0]
        return row.masked_fill(mask[0, :, None] == 0, 0)

    def use_attention(self, network: Any, name: str, device: torch.device, dtype: torch.dtype) -> str:
        chosen = choose(name, KERNELS, device, dtype, self.name)
        with quiet():
            network.set_attention_backend(BACKENDS[chosen])
        return chosen

    def denoising_bytes(self, base: VideoBase, *, rows: int, patches: int, itemsize: int) -> int:
        config = base.transformer
        width = config.num_attention_heads * config.attention_head_dim
        factor = FORWARD + (OF_TOKENS if base.index.get("expand_timesteps") else 0.0)
        return int((factor * width + WIDENED * config.ffn_dim) * rows * patches * itemsize)

    def decoding_bytes(self, vae: Any, size: ClipSize, dtype: torch.dtype, device: str, *, tiling: bool) -> int:
        patch = vae.patch_size or 1  # the last block's pixels are squares of the clip's
        frames = min(size.frames, vae.scale_factor_temporal)
        channels = (vae.decoder_base_dim or vae.base_dim) * vae.dim_mult[0]
        each = DECODE.get(device, DECODE["cuda"]) * (RESIDUAL if vae.is_residual else 1.0)
        each *= frames * channels / patch**2
        if not tiling:
            return int(each * size.height * size.width * dtype.itemsize)
        tile = min(size.height, TILE) * min(size.width, TILE)
        whole = size.frames * size.height * size.width * 3
        return int(max(each * tile + TILES * whole, TILED[min(patch, 2)] * whole) * dtype.itemsize)


WAN = WanKind(
    name="wan",
    title="Wan",
    example="wan2.1-1.3b",
    presets=recipes.WAN,
    paper=recipes.WAN_PAPER,
    width=1536,
    pipeline=WanPipeline,
    refused={
        "WanImageToVideoPipeline": "Wan's image-to-video form, which is not supported",
        "WanVACEPipeline": "Wan's editing form (VACE), which is not supported",
        "WanVideoToVideoPipeline": "Wan's video-to-video form, which is not supported",
    },
    network=WanTransformer3DModel,
    vae=AutoencoderKLWan,
    encoder=UMT5EncoderModel,
    encoder_config={
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "vocab_size": 256384,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    schedulers={made.__name__: made for made in (UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler)},
    wants="UniPC with flow sigmas, or Euler of flow matching",
    scheduler={
        "_class_name": "UniPCMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "num_train_timesteps": 1000,
    },
    time=WanTime(),
    vae_dtype=torch.float32,
    branches_together=False,
)
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


class Wan(VideoBackbone):
    """A Wan text-to-video model as the training engine sees it."""

    kind = WAN
    lora_targets: Mapping[str, Sequence[str] | str] = {
        "attention": _ATTENTION,
        "all": [*_ATTENTION, "ffn.net.0.proj", "ffn.net.2"],
    }

    def _ask(self, x_t: Tensor, t: Tensor, context: Tensor, first: int) -> Tensor:
        if self._base.index.get("expand_timesteps"):
            steps, patch = self.compression.patch_time, self.compression.patch
            tokens = x_t.shape[1] // steps * (x_t.shape[3] // patch) * (x_t.shape[4] // patch)
            t = t[:, None].expand(-1, tokens)
        with rope_at(unwrapped(self.denoiser, WanTransformer3DModel), first):
            output: Tensor = self.denoiser(
                hidden_states=x_t.transpose(1, 2), timestep=t, encoder_hidden_states=context, return_dict=False
            )[0]
        return output.transpose(1, 2)
