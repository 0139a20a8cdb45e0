"""CogVideoX (2408.06072): how its models are loaded, and what the training engine needs of them.

2b has sine-cosine positions, 5b and 1.5 rotary ones, 1.5 also patches two latent frames at a time. All predict v, with
an SNR shift and zero terminal SNR, which the checkpoint's own scheduler configuration tells. Weights are safetensors
only and no remote code is run. T5 and the transformer are never on the device together: T5-XXL is the larger one.
"""

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from huggingface_hub import snapshot_download
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from selfnpo_core.adapters import NegativeAdapters, NegativeDelta
from selfnpo_core.errors import InputError
from selfnpo_core.models.embeddings import EmbeddingsCache, Encode, Encoder, embedded, tokenizer_facts
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.models.loading import one_line_errors, quiet
from selfnpo_core.models.sources import Source
from selfnpo_core.models.storage import compute_dtype
from selfnpo_core.sampling import preference
from selfnpo_core.sampling.preference import Preference
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.system.devices import best_device
from selfnpo_video.attention import use_attention
from selfnpo_video.clips import Settings, frames_of, latent_clips
from selfnpo_video.models import KNOWN, architecture, find_source, size_for
from selfnpo_video.positions import Rotary, rotary_positions, window_at
from selfnpo_video.shapes import ClipSize, Compression
from selfnpo_video.sheets import strip

if TYPE_CHECKING:
    from PIL.Image import Image

    from selfnpo_core.models.backbone import Negative

log = logging.getLogger(__name__)
PIPELINES = {
    "CogVideoXPipeline": CogVideoXPipeline,
    "CogVideoXImageToVideoPipeline": CogVideoXImageToVideoPipeline,
}
SCHEDULERS = {"CogVideoXDDIMScheduler": CogVideoXDDIMScheduler, "CogVideoXDPMScheduler": CogVideoXDPMScheduler}
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_TARGETS = {
    "attention": _ATTENTION,
    "all": [*_ATTENTION, "ff.net.0.proj", "ff.net.2", "norm1.linear", "norm2.linear", "proj_out"],
}
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")


def local(source: Source) -> Source:
    """The same model on this disk, checked to be CogVideoX: a hub id is fetched, into the hub's own cache."""
    if source.kind == "file":
        raise InputError(f"model {source.name} is a single file: CogVideoX comes in diffusers folders, give one")
    if source.kind == "hub":
        with quiet(), one_line_errors(source):
            index = Path(snapshot_download(source.location, allow_patterns=["model_index.json"]))
            _pipeline_class(index, source.name)
            folder = snapshot_download(source.location, allow_patterns=list(_FILES))
        source = replace(source, kind="folder", location=str(folder))
    _check_folder(Path(source.location), source.name)
    return source


def load_pipeline(
    model: Source | str, *, dtype: torch.dtype = torch.float32, **components: Any
) -> CogVideoXPipeline | CogVideoXImageToVideoPipeline:
    """The stock pipeline of a model, on the CPU. Components that are given (`transformer=…`) are not read from disk.

    Raises `InputError` for what cannot be found, is of another family, or has pickled weights only.
    """
    source = local(find_source(model) if isinstance(model, str) else model)
    folder = Path(source.location)
    with quiet(), one_line_errors(source):
        pipe = _pipeline_class(folder, source.name).from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, **components
        )
    if isinstance(pipe.scheduler, CogVideoXDDIMScheduler | CogVideoXDPMScheduler):
        pipe.register_to_config(_name_or_path=source.name)
        return pipe
    raise InputError(f"model {source.name} has a {type(pipe.scheduler).__name__}: CogVideoX wants its own DDIM or DPM")


def find_preference(name: str, pipe: Any) -> Preference:
    """What `--preference` stands for, for a pipeline that is loaded: see `selfnpo_core.sampling.preference`."""

    def whole(source: Source) -> Any:
        folder = local(source).location
        with quiet(), one_line_errors(source):
            return CogVideoXTransformer3DModel.from_pretrained(folder, subfolder="transformer", use_safetensors=True)

    network = CogVideoXTransformer3DModel
    return preference.find(name, network=network, component="transformer", locate=find_source, whole=whole)


class CogVideoX:
    """A CogVideoX text-to-video model as the training engine sees it (`selfnpo_core.models.backbone.Backbone`).

    Of the model only the transformer is in memory; T5 is read for `embed`, the VAE for `draw_samples`.

    frames, height, width: of the clips, in pixels; None is what the checkpoint was made for.
    """

    family = "cogvideox"
    lora_targets: Mapping[str, Sequence[str] | str] = LORA_TARGETS
    embeddings_in_host_memory = True

    def __init__(
        self,
        model: Source | str,
        *,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "auto",
    ):
        source = find_source(model) if isinstance(model, str) else model
        self.name = source.name
        self.device = best_device(device) if isinstance(device, str) else device
        self._source = local(source)
        folder = Path(self._source.location)
        if _pipeline_class(folder, self.name) is not CogVideoXPipeline:
            raise InputError(f"model {self.name} turns images into video, and training wants text to video: use that")
        vae, transformer = _config(folder, "vae", self.name), _config(folder, "transformer", self.name)
        self._describe(transformer, vae, _scheduler(folder, self.name), (frames, height, width), dtype)
        with quiet(), one_line_errors(self._source):
            network = CogVideoXTransformer3DModel.from_pretrained(
                folder, subfolder="transformer", torch_dtype=_stored_dtype(folder / "transformer"), use_safetensors=True
            )
        self.base_hash = weights_hash(network)
        self.denoiser: nn.Module = network.to(dtype).requires_grad_(False).eval()

    @classmethod
    def sketch(
        cls,
        model: Source | str,
        *,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "CogVideoX":
        """A model without its weights, on the meta device: enough to tell what training it will take.

        model: the name of a known one, whose configuration is in this package, or a folder.
        """
        made = cls.__new__(cls)
        made.name = model if isinstance(model, str) else model.name
        made.device, made.base_hash = torch.device("meta"), ""
        scheduler: CogVideoXDDIMScheduler | CogVideoXDPMScheduler
        if isinstance(model, str):
            config, vae, from_image = dict(architecture(model)), {}, KNOWN[model].from_image
            scheduler = CogVideoXDDIMScheduler(
                prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
            )
        else:
            folder = Path(local(model).location)
            config, vae = (_config(folder, part, model.name) for part in ("transformer", "vae"))
            from_image, scheduler = pipeline_class(model) is not CogVideoXPipeline, _scheduler(folder, model.name)
        if from_image:
            raise InputError(f"model {made.name} turns images into video, and training wants text to video: use that")
        made._describe(config, vae, scheduler, (frames, height, width), dtype)
        with torch.device("meta"):
            transformer = CogVideoXTransformer3DModel(**config).to(dtype).requires_grad_(False).eval()
        made.denoiser = transformer
        return made

    def _describe(
        self,
        transformer: Mapping[str, Any],
        vae: Mapping[str, Any],
        scheduler: CogVideoXDDIMScheduler | CogVideoXDPMScheduler,
        size: tuple[int | None, int | None, int | None],
        dtype: torch.dtype,
    ) -> None:
        """What configurations tell. Raises `InputError` for a size that the model cannot draw."""
        self.dtype, self._config = dtype, with_defaults(CogVideoXTransformer3DModel, transformer)
        self.compression = Compression.of(self._config, with_defaults(AutoencoderKLCogVideoX, vae))
        own = size_for(self.name, transformer, self._config)
        self.size = ClipSize(frames=size[0] or own.frames, height=size[1] or own.height, width=size[2] or own.width)
        self.window_step = self.compression.patch_time
        self.latent_shape: tuple[int, ...] = self.compression.latent_shape(self.size)
        self.prediction_type = scheduler.config.prediction_type
        self.schedule = NoiseSchedule.from_scheduler(scheduler)
        self.max_tokens = int(self._config.max_text_seq_length)
        self.bytes_per_prompt = self.max_tokens * self._config.text_embed_dim * dtype.itemsize
        self._table: Tensor | None = None
        self._row: dict[str, int] = {}
        self._rotary: dict[tuple[int, int, torch.device], Rotary | None] = {}

    def embed(self, prompts: Sequence[str], cache: EmbeddingsCache | None = None) -> None:
        """Table of the prompts' embeddings (N + 1, L, D) in host memory, the null prompt's row last. T5 is freed."""
        if self.device.type == "meta":
            self._table = torch.empty(len(prompts) + 1, self.max_tokens, self._config.text_embed_dim, device="meta")
            return
        if next(self.denoiser.parameters()).device.type != "cpu":
            raise RuntimeError("embed() comes before the transformer goes to the device")
        with quiet(), one_line_errors(self._source):
            tokenizer = T5Tokenizer.from_pretrained(Path(self._source.location) / "tokenizer")
        _say_what_is_cut(tokenizer, prompts, self.max_tokens)
        encoder = text_encoder(self._source, tokenizer, self.max_tokens, self.device, self.dtype)
        (self._table,) = embedded([*prompts, None], encoder, cache)
        del encoder
        _empty_cache(self.device)
        self._row = {text: row for row, text in enumerate(prompts)}

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """The transformer's raw output at x_t: (B, F, C, H, W), t: (B,), prompt: (B,) rows of the table."""
        return self.predict_window(x_t, t, prompt, first=0)

    def predict_window(self, x_t: Tensor, t: Tensor, prompt: Tensor, *, first: int) -> Tensor:
        """As `predict`, x_t being a window that begins at latent frame `first` of the clip."""
        assert self._table is not None, "embed() comes before predict()"
        dtype = compute_dtype(self.denoiser)
        context = self._table[prompt.to(self._table.device)].to(x_t.device, dtype)
        with window_at(_unwrapped(self.denoiser), first):
            output: Tensor = self.denoiser(
                hidden_states=x_t.to(dtype),
                encoder_hidden_states=context,
                timestep=t,
                image_rotary_emb=self._rotary_at(x_t, first),
                return_dict=False,
            )[0]
        return output

    def use_attention(self, name: str, amp: torch.dtype | None = None) -> None:
        """ "auto", "sdpa", "xformers" or "flash" (`selfnpo_video.attention`), as they run in autocast's dtype."""
        use_attention(self.denoiser, name, self.device, amp or self.dtype)

    def draw_samples(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: "Negative",
    ) -> "Sequence[Image]":
        """A strip of frames a prompt, each one of `embed`'s. The transformer waits on the CPU while the VAE decodes."""
        assert self._table is not None, "embed() comes before draw_samples()"
        device = next(self.denoiser.parameters()).device
        embeddings = self._table[[*(self._row[prompt] for prompt in prompts), -1]]
        pipe = load_pipeline(
            self._source, dtype=self.dtype, transformer=self.denoiser, text_encoder=None, tokenizer=None
        )
        if negative is None:
            attached: Any = nullcontext()
        elif isinstance(negative, str):
            attached = NegativeAdapters.attach(pipe, {negative: 1.0})
        else:
            attached = NegativeDelta.attach(pipe, negative)
        settings = Settings(guidance_scale=guidance_scale, steps=steps, size=self.size, batch_size=1)
        with attached:
            drawn = latent_clips(pipe, prompts, seeds, settings, embeddings=embeddings)
            clips = [latents.cpu() for _, latents in drawn]
        self.denoiser.to("cpu")
        strips = [strip(np.stack(list(frames_of(pipe, clip, self.device)))) for clip in clips]
        del pipe
        self.denoiser.to(device)
        _empty_cache(self.device)
        return strips

    def save_lora(self, directory: Path, adapter: str) -> None:
        """By the stock saver, raw PEFT keys with the metadata that keeps alpha ≠ rank on reload, in float32."""
        save_lora(self.denoiser, directory, adapter)

    def load_lora(self, file: Path, name: str) -> None:
        """Load a LoRA file, in any naming that diffusers reads, as an adapter of the transformer."""
        state, metadata = CogVideoXPipeline.lora_state_dict(
            file.parent, weight_name=file.name, return_lora_metadata=True
        )
        CogVideoXPipeline.load_lora_into_transformer(
            state, transformer=self.denoiser, adapter_name=name, metadata=metadata
        )

    def _rotary_at(self, x_t: Tensor, first: int) -> Rotary | None:
        if type(x_t) is not Tensor:  # of a simulation, whose tensors are worth nothing after it
            return self._make_rotary(x_t, first)
        key = (x_t.shape[1], first, x_t.device)
        if key not in self._rotary:
            self._rotary[key] = self._make_rotary(x_t, first)
        return self._rotary[key]

    def _make_rotary(self, x_t: Tensor, first: int) -> Rotary | None:
        found = rotary_positions(_unwrapped(self.denoiser), x_t.shape[1], *x_t.shape[3:], first=first)
        return None if found is None else (found[0].to(x_t.device), found[1].to(x_t.device))


def text_encoder(
    source: Source, tokenizer: T5Tokenizer, max_tokens: int, device: torch.device, dtype: torch.dtype
) -> Encoder:
    """A local model's T5: a text → its embeddings (max_tokens, D), padded as the pipeline pads."""
    folder = Path(source.location) / "text_encoder"

    def load() -> Encode:
        with quiet(), one_line_errors(source):
            model = T5EncoderModel.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        model.to(device)

        def encode(text: str | None) -> tuple[Tensor, ...]:
            padded = tokenizer(text or "", padding="max_length", max_length=max_tokens, truncation=True)
            return (model(torch.tensor([padded.input_ids], device=device))[0][0].to("cpu", dtype),)

        return encode

    files = {path.name: path for path in sorted(folder.glob("*")) if path.suffix in (".json", ".safetensors")}
    facts = {"dtype": str(dtype), "max_tokens": max_tokens, "tokenizer": tokenizer_facts(tokenizer)}
    return Encoder(load=load, files={**files, "code": Path(__file__)}, facts=facts, device=device)


def _say_what_is_cut(tokenizer: T5Tokenizer, texts: Sequence[str], max_tokens: int) -> None:
    lengths = [len(ids) for ids in tokenizer(list(texts)).input_ids] if texts else []
    if cut := sum(length > max_tokens for length in lengths):
        log.warning("%d of %d prompts are longer than %d tokens: the rest of them is cut", cut, len(texts), max_tokens)


def save_lora(transformer: nn.Module, directory: Path, adapter: str) -> None:
    """directory/pytorch_lora_weights.safetensors, loaded by any stock CogVideoX pipeline."""
    layers = get_peft_model_state_dict(transformer, adapter_name=adapter)
    CogVideoXPipeline.save_lora_weights(
        directory,
        transformer_lora_layers={name: tensor.float().contiguous().cpu() for name, tensor in layers.items()},
        transformer_lora_adapter_metadata=transformer.peft_config[adapter].to_dict(),
        safe_serialization=True,
    )


def transformer_config(source: Source) -> dict[str, Any]:
    """Configuration of a local model's transformer, as it is on disk."""
    return _config(Path(source.location), "transformer", source.name)


def pipeline_class(source: Source) -> Any:
    """Of a local model: CogVideoXPipeline or CogVideoXImageToVideoPipeline."""
    return _pipeline_class(Path(source.location), source.name)


def vae_config(source: Source) -> dict[str, Any]:
    """Configuration of a local model's VAE, as it is on disk."""
    return _config(Path(source.location), "vae", source.name)


def with_defaults(model: Any, values: Mapping[str, Any]) -> SimpleNamespace:
    """A model's configuration with the defaults of its class, as attributes."""
    defaults = {n: p.default for n, p in inspect.signature(model.__init__).parameters.items() if n != "self"}
    return SimpleNamespace(**{**defaults, **values})


def _config(folder: Path, part: str, name: str) -> dict[str, Any]:
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return values
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"model {name} has no readable {part}/{file.name} ({detail}): get it again") from None


def _check_folder(folder: Path, name: str) -> None:
    """Raise `InputError` unless a diffusers folder is a CogVideoX pipeline with its weights as safetensors."""
    _pipeline_class(folder, name)
    for part in ("transformer", "vae", "text_encoder"):
        if not any((folder / part).glob("*.safetensors")):
            pickled = any(p.suffix in (".bin", ".pt", ".pth", ".ckpt") for p in (folder / part).glob("*"))
            problem = "only pickled weights, which can run code when loaded" if pickled else "no weights"
            raise InputError(f"model {name} has {problem} in {part}: get it as safetensors")


def _pipeline_class(folder: Path, name: str) -> Any:
    try:
        found = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    except FileNotFoundError:
        raise InputError(f"model {name} has no model_index.json: give a diffusers folder of CogVideoX") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}/model_index.json is damaged ({error}): get the model again") from None
    if found not in PIPELINES:
        raise InputError(f"model {name} is a {found}, not CogVideoX: give one that is, such as cogvideox-2b")
    return PIPELINES[found]


def _scheduler(folder: Path, name: str) -> CogVideoXDDIMScheduler | CogVideoXDPMScheduler:
    config = _config(folder, "scheduler", name)
    kind = config.get("_class_name")
    if kind not in SCHEDULERS:
        raise InputError(f"model {name} has a {kind}: CogVideoX wants its own DDIM or DPM scheduler")
    return SCHEDULERS[kind].from_config(config)


def _stored_dtype(folder: Path) -> torch.dtype:
    """Of the weights on disk, so that none is converted before it is hashed."""
    file = sorted(folder.glob("*.safetensors"))[0]
    with safe_open(file, framework="pt") as weights:
        name = next(iter(weights.keys()))
        return weights.get_tensor(name).dtype


def _unwrapped(network: nn.Module) -> CogVideoXTransformer3DModel:
    """Without what DDP, DeepSpeed or a compiler put around it."""
    while not isinstance(network, CogVideoXTransformer3DModel):
        network = network.module if hasattr(network, "module") else network._orig_mod
    return network


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
