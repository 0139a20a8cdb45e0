"""The SD1.5 family (2112.10752): how its models are loaded, and what the training engine needs of them.

Any `StableDiffusionPipeline` will do: epsilon or v-prediction, any size. Weights are safetensors only, no remote code
is run, and no safety checker is loaded.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from huggingface_hub import hf_hub_download
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from tqdm import tqdm

from selfnpo_core.errors import InputError
from selfnpo_core.loading import best_device, one_line_errors, quiet
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.sources import Source
from selfnpo_core.training.hashing import weights_hash
from selfnpo_image.family import check_folder, check_index, check_scheduler, check_unet
from selfnpo_image.models import find_source
from selfnpo_image.single_file import prepared

if TYPE_CHECKING:
    from PIL.Image import Image

    from selfnpo_core.training.backbone import Negative

log = logging.getLogger(__name__)
EMBED_BATCH = 32
SMALLEST_VOCABULARY = 512
"""CLIP's tokenizer knows every byte, at a word's end and before it. One that was loaded without files is empty."""
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"]
LORA_TARGETS = {
    "attention": _ATTENTION,
    "all": [*_ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", *_CONVOLUTIONS],
}


def load_pipeline(
    model: Source | str, *, dtype: torch.dtype = torch.float32, **components: Any
) -> StableDiffusionPipeline:
    """The stock pipeline of a model, on the CPU. Components that are given (`unet=…`) are not read from disk.

    Raises `InputError` for what cannot be found, is of another family, or has pickled weights only.
    """
    source = local(find_source(model) if isinstance(model, str) else model)
    with quiet(), one_line_errors(source):
        if source.kind == "file":
            with prepared(source) as settings:
                pipe = StableDiffusionPipeline.from_single_file(
                    source.location, torch_dtype=dtype, safety_checker=None, **{**settings, **components}
                )
        else:
            pipe = StableDiffusionPipeline.from_pretrained(
                source.location,
                torch_dtype=dtype,
                use_safetensors=True,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                variant=_variant(Path(source.location)),
                **components,
            )
    _check_whole(pipe, source)
    check_scheduler(pipe.scheduler.config, source.name)
    pipe.register_to_config(_name_or_path=source.name)
    return pipe


def local(source: Source) -> Source:
    """The same model on this disk, checked to be of the family: a hub id is fetched, into the hub's own cache."""
    if source.kind == "hub":
        with quiet(), one_line_errors(source):
            for name, check in (("model_index.json", check_index), ("unet/config.json", check_unet)):
                check(_read_json(hf_hub_download(source.location, name)), source.name)
            folder = StableDiffusionPipeline.download(source.location, use_safetensors=True, safety_checker=None)
        source = replace(source, kind="folder", location=str(folder))
    if source.kind == "folder":
        check_folder(Path(source.location), source.name)
    return source


class SD15:
    """A model of the SD1.5 family as the training engine sees it (`selfnpo_core.training.backbone.Backbone`).

    Text encoder, tokenizer and VAE are in memory only from construction to the end of `embed`, and while
    `draw_samples` runs, which reads them from the disk again.

    height, width: of the pictures, in pixels; None is what the model was made for.
    """

    family = "sd15"
    lora_targets: Mapping[str, Sequence[str] | str] = LORA_TARGETS

    def __init__(
        self,
        model: Source | str,
        *,
        height: int | None = None,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "auto",
    ):
        source = find_source(model) if isinstance(model, str) else model
        self.name, self.dtype = source.name, dtype
        self.device = best_device(device) if isinstance(device, str) else device
        self._source = local(source)
        pipe = load_pipeline(self._source)
        self.base_hash = weights_hash(pipe.unet)
        if dtype != torch.float32:
            for part in (pipe.unet, pipe.text_encoder, pipe.vae):
                part.to(dtype)
        self.denoiser: nn.Module = pipe.unet.requires_grad_(False).eval()
        self.prediction_type = check_scheduler(pipe.scheduler.config, self.name)
        self.schedule = NoiseSchedule.from_scheduler(pipe.scheduler)
        self._size = height, width
        self.latent_shape: tuple[int, ...] = _latent_shape(pipe, height, width)
        text_width = pipe.text_encoder.config.hidden_size
        self.bytes_per_prompt = pipe.tokenizer.model_max_length * text_width * dtype.itemsize
        pipe.unet = None
        self._rest: StableDiffusionPipeline | None = pipe
        self._table: Tensor | None = None

    @property
    def text_encoder_on_device(self) -> bool:
        return self._rest is not None

    @property
    def vae_on_device(self) -> bool:
        return self._rest is not None

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> None:
        """Table of the prompts' embeddings (N + 1, L, D), the null prompt's row last; then drop what made them."""
        pipe = self._pipeline()
        pipe.text_encoder.to(self.device)
        texts, rows = [*prompts, ""], []
        _say_what_is_cut(pipe, prompts)
        with tqdm(total=len(texts), desc="embed prompts", unit="prompt", disable=len(texts) <= EMBED_BATCH) as bar:
            for start in range(0, len(texts), EMBED_BATCH):
                batch = texts[start : start + EMBED_BATCH]
                rows.append(pipe.encode_prompt(batch, self.device, 1, False)[0].to(self.dtype))
                bar.update(len(batch))
        self._table = torch.cat(rows)
        self._release()

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """The UNet's raw output at x_t: (B, 4, H, W), t: (B,), prompt: (B,) rows of the table."""
        assert self._table is not None, "embed() comes before predict()"
        self._table = self._table.to(x_t.device)
        dtype = next(p.dtype for name, p in self.denoiser.named_parameters() if ".lora_" not in name)
        context = self._table[prompt.to(x_t.device)].to(dtype)
        output: Tensor = self.denoiser(x_t.to(dtype), t, encoder_hidden_states=context, return_dict=False)[0]
        return output

    def use_attention(self, name: str, amp: torch.dtype | None = None) -> None:
        """ "auto" leaves diffusers' choice; "sdpa", "eager", or "xformers" on CUDA."""
        if name == "auto":
            return
        processors = {"sdpa": AttnProcessor2_0, "eager": AttnProcessor}
        if name in processors:
            self.denoiser.set_attn_processor(processors[name]())
        elif name == "xformers":
            self._use_xformers()
        else:
            raise InputError(f"attention '{name}' is unknown for {self.family}: use auto, sdpa, eager or xformers")

    def draw_samples(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: "Negative",
    ) -> "Sequence[Image]":
        """One picture a prompt by the stock pipeline, with the negative weights on its negative branch."""
        from selfnpo_core.adapters import NegativeAdapters, NegativeDelta
        from selfnpo_image.sampling import Settings, draw

        device = next(self.denoiser.parameters()).device
        pipe = self._pipeline()
        pipe.text_encoder.to(device)
        pipe.vae.to(device)
        pipe.register_modules(unet=self.denoiser)
        height, width = self._size
        settings = Settings(
            guidance_scale=guidance_scale, steps=steps, height=height, width=width, batch_size=len(prompts)
        )
        try:
            if negative is None:
                attached: Any = nullcontext()
            elif isinstance(negative, str):
                attached = NegativeAdapters.attach(pipe, {negative: 1.0})
            else:
                attached = NegativeDelta.attach(pipe, negative)
            with attached:
                return [picture for _, picture in draw(pipe, prompts, seeds, settings)]
        finally:
            pipe.unet = None
            self._release()

    def save_lora(self, directory: Path, adapter: str) -> None:
        """By the stock saver. Raw PEFT keys: the converter to diffusers' own loses the layers outside attention."""
        save_lora(self.denoiser, directory, adapter)

    def load_lora(self, file: Path, name: str) -> None:
        """Load a LoRA file, in any naming that diffusers reads, as an adapter of the UNet."""
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            file.parent, weight_name=file.name, return_lora_metadata=True
        )
        StableDiffusionPipeline.load_lora_into_unet(
            state, network_alphas=alphas, unet=self.denoiser, adapter_name=name, metadata=metadata
        )

    def _pipeline(self) -> StableDiffusionPipeline:
        """The pipeline without its UNet: what is held, or read anew."""
        if self._rest is None:
            pipe = load_pipeline(self._source, dtype=self.dtype, unet=self.denoiser)
            pipe.unet = None
            self._rest = pipe
        return self._rest

    def _release(self) -> None:
        self._rest = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _use_xformers(self) -> None:
        """Probed with a real call: an installed xformers may lack kernels for this GPU."""
        problem = "there is no CUDA GPU" if self.device.type != "cuda" else ""
        if not problem:
            try:
                import xformers.ops

                q = torch.zeros((1, 16, 1, 64), device=self.device, dtype=torch.float16)
                xformers.ops.memory_efficient_attention(q, q, q)
            except Exception as error:
                problem = " ".join(str(error).split())[:120]
        if problem:
            raise InputError(f"attention xformers cannot run here ({problem}): use attention=sdpa")
        self.denoiser.enable_xformers_memory_efficient_attention()


def save_lora(unet: nn.Module, directory: Path, adapter: str) -> None:
    """directory/pytorch_lora_weights.safetensors in float32, with the metadata that keeps alpha ≠ rank on reload."""
    layers = get_peft_model_state_dict(unet, adapter_name=adapter)
    StableDiffusionPipeline.save_lora_weights(
        directory,
        unet_lora_layers={name: tensor.float().contiguous().cpu() for name, tensor in layers.items()},
        unet_lora_adapter_metadata=unet.peft_config[adapter].to_dict(),
        safe_serialization=True,
    )


def _say_what_is_cut(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> None:
    """CLIP reads a fixed number of tokens and no more."""
    limit = pipe.tokenizer.model_max_length
    cut = sum(len(tokens) > limit for tokens in pipe.tokenizer(list(prompts)).input_ids) if prompts else 0
    if cut:
        log.warning("%d of %d prompts are longer than %d tokens: the rest of them is cut", cut, len(prompts), limit)


def _latent_shape(pipe: StableDiffusionPipeline, height: int | None, width: int | None) -> tuple[int, ...]:
    """(channels, height, width) for pictures of this size in pixels. The UNet halves latents level by level."""
    size, factor = pipe.unet.config.sample_size, pipe.vae_scale_factor
    own = (size, size) if isinstance(size, int) else size
    step = factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    if wrong := [n for n in (height, width) if n is not None and n % step]:
        near = max(step, round(wrong[0] / step) * step)
        raise InputError(f"a height or width of {wrong[0]} is not possible: use multiples of {step}, such as {near}")
    rows, columns = (given // factor if given else n for given, n in zip((height, width), own, strict=True))
    return pipe.unet.config.in_channels, rows, columns


def _variant(folder: Path) -> str | None:
    """ "fp16" where a folder has only such files."""
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    return "fp16" if half.is_file() and not plain.is_file() else None


def _check_whole(pipe: StableDiffusionPipeline, source: Source) -> None:
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(pipe, part)
        if module is None or any(tensor.is_meta for tensor in module.parameters()):
            raise InputError(f"model {source.name} lacks weights of its {part}: get the whole checkpoint")
    if len(pipe.tokenizer) < SMALLEST_VOCABULARY:
        raise InputError(f"model {source.name} lacks its tokenizer's files: get the whole model")


def _read_json(path: str) -> dict[str, Any]:
    import json

    return json.loads(Path(path).read_text(encoding="utf-8"))
