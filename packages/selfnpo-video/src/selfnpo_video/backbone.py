"""What all families of video models share, as the training engine sees them; each is a subclass in a file of its own.

Text encoder and transformer are never on the device together: the encoder is often the larger one.
"""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from selfnpo_core.adapters.attach import attach_weights
from selfnpo_core.errors import InputError
from selfnpo_core.models.backbone import Aside
from selfnpo_core.models.components import size_of
from selfnpo_core.models.embeddings import EmbeddingsCache, embedded
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.models.lengths import say_what_is_cut
from selfnpo_core.models.loading import one_line_errors
from selfnpo_core.models.storage import cast, compute_dtype
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.system import private
from selfnpo_core.system.caches import checksum
from selfnpo_core.system.devices import best_device
from selfnpo_core.system.memory import available
from selfnpo_core.training.pictures import strip
from selfnpo_core.training.simulation import held_by
from selfnpo_video import loading
from selfnpo_video.clips import Settings, frames_of, latent_clips
from selfnpo_video.kinds import VideoBase, VideoKind
from selfnpo_video.memory import decoding_bytes
from selfnpo_video.models import KNOWN
from selfnpo_video.video_files import write_video

if TYPE_CHECKING:
    from PIL.Image import Image

    from selfnpo_core.models.backbone import NegativeWeights

log = logging.getLogger(__name__)
META = torch.device("meta")


class VideoBackbone:
    """A text-to-video model as the training engine sees it (`selfnpo_core.models.backbone.Backbone`).

    Of the model only the transformer is in memory; the text encoder is read for `embed`, the VAE for `draw_samples`.

    frames, height, width: of the clips, in pixels; None is what the checkpoint was made for. On the meta device it is
    made by its configuration alone, without weights: see `sketch`. tiling: whether `draw_clips` decodes tile by tile;
    None is where whole frames do not fit. null_prompt: what the null branch is given; None is what the stock pipeline
    gives it.

    keep_stored: the transformer's weights stay mapped from their file, in the type that they have there, which all
    processes of a node share; whoever uses it brings it to its device as `dtype` first.

    Raises `InputError` for a base of another family, for one that wants an image, and for a size that it cannot draw.
    """

    kind: ClassVar[VideoKind]
    lora_targets: Mapping[str, Sequence[str] | str]
    embeddings_in_host_memory = True
    sampling = 2.0, 10
    """Of the finished clips that the demo model was trained on; not tuned on large ones."""

    def __init__(
        self,
        base: VideoBase,
        *,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "auto",
        tiling: bool | None = None,
        keep_stored: bool = False,
        null_prompt: str | None = None,
    ):
        if base.family != self.kind.name:
            raise InputError(
                f"model {base.name} is a {base.kind.title} model, not of the {self.kind.title} family: give one that "
                f"is, such as {self.kind.example}"
            )
        self.tiling, self.null_prompt = tiling, null_prompt
        self.name, self.dtype, self.base_is_mapped = base.name, dtype, keep_stored
        self.device = best_device(device) if isinstance(device, str) else device
        self._base = base if self.device == META else loading.local(base)
        with one_line_errors(base.source):
            self._describe(self._base, frames, height, width)

    def _describe(self, base: VideoBase, frames: int | None, height: int | None, width: int | None) -> None:
        """What the configurations tell, and the transformer."""
        if base.from_image:
            raise InputError(f"model {self.name} turns images into video, and training wants text to video: use that")
        scheduler = _scheduler(base)
        self.prediction_type = self.kind.predicts(scheduler, self.name)
        self.compression = base.compression
        self.size = base.size_of(frames, height, width)
        self.window_step = self.compression.patch_time
        self.latent_shape: tuple[int, ...] = self.compression.latent_shape(self.size)
        self.schedule = NoiseSchedule.from_scheduler(scheduler)
        self.max_tokens, self._text_width = self.kind.text(base.transformer)
        self.bytes_per_prompt = self.max_tokens * self._text_width * self.dtype.itemsize
        self._table: Tensor | None = None
        self._row: dict[str, int] = {}
        stored = self.dtype if base.source.kind == "hub" else loading.stored_dtype(base)  # a hub's sketch cannot tell
        network = _sketched(base) if self.device == META else loading.load_network(base, stored)
        self.base_hash = "" if self.device == META else weights_hash(network)
        cast(network, stored if self.base_is_mapped else self.dtype)
        self.denoiser: nn.Module = network.requires_grad_(False).eval()

    @property
    def family(self) -> str:
        return self.kind.name

    @classmethod
    def sketch(cls, base: VideoBase, **options: Any) -> "VideoBackbone":
        """A model without its weights: enough to tell what training it will take. Nothing is fetched.

        options: of the class, but the device.
        """
        return cls(base, device=META, **options)

    def embed(self, prompts: Sequence[str], cache: EmbeddingsCache | None = None) -> None:
        """Table of the prompts' embeddings (N + 1, L, D) in host memory, the null prompt's row last. The encoder is
        freed."""
        if self.device == META:
            self._table = torch.empty(len(prompts) + 1, self.max_tokens, self._text_width, device=META)
            return
        if next(self.denoiser.parameters()).device.type != "cpu":
            raise RuntimeError("embed() comes before the transformer goes to the device")
        tokenizer = loading.load_tokenizer(self._base)
        texts = list(prompts) if self.null_prompt is None else [*prompts, self.null_prompt]
        say_what_is_cut(texts, {"text_encoder": (tokenizer, self.max_tokens)})
        encoder = loading.text_encoder(self._base, tokenizer, self.max_tokens, self.device, self.dtype)
        (self._table,) = embedded([*prompts, self.null_prompt], encoder, cache)
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
        return self._ask(x_t.to(dtype), t, context, first)

    @abstractmethod
    def _ask(self, x_t: Tensor, t: Tensor, context: Tensor, first: int) -> Tensor:
        """The network's output at x_t: (B, F, C, H, W), of that shape, told of each row's text: (B, L, D).

        first: latent frame of the clip at which x_t begins.
        """

    def use_attention(self, name: str, amp: torch.dtype | None = None) -> None:
        """ "auto", "sdpa", "xformers" or "flash" (`selfnpo_video.attention`), as they run in autocast's dtype."""
        self.kind.use_attention(self.denoiser, name, self.device, amp or self.dtype)

    def draw_samples(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: "NegativeWeights",
    ) -> "Sequence[Image]":
        """A strip of frames a prompt, each one of `embed`'s."""
        how: dict[str, Any] = {"guidance_scale": guidance_scale, "steps": steps, "negative": negative}
        return [strip(clip) for clip in self.draw_clips(prompts, seeds, **how)]

    def draw_clips(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: "NegativeWeights",
    ) -> Sequence[np.ndarray]:
        """(F, H, W, 3) a prompt, each one of `embed`'s. The transformer waits on the CPU while the VAE decodes, tile by
        tile if the constructor was told so, or if whole frames do not fit."""
        assert self._table is not None, "embed() comes before draw_clips()"
        device = next(self.denoiser.parameters()).device
        embeddings = self._table[[*(self._row[prompt] for prompt in prompts), -1]]
        given = {"transformer": self.denoiser, "text_encoder": None, "tokenizer": None}
        pipe = loading.load_pipeline(self._base, dtype=self.dtype, **given)
        settings = Settings(guidance_scale=guidance_scale, steps=steps, size=self.size, batch_size=1)
        with attach_weights(pipe, negative):
            drawn = latent_clips(pipe, prompts, seeds, settings, embeddings=embeddings)
            clips = [latents.cpu() for _, latents in drawn]
        self.denoiser.to("cpu")
        _empty_cache(self.device)
        named = zip(clips, (f"the clip of seed {seed}" for seed in seeds), strict=True)
        frames = [self._decoded(pipe, clip, name) for clip, name in named]
        del pipe
        self.denoiser.to(device)
        _empty_cache(self.device)
        return frames

    def _decoded(self, pipe: Any, latents: Tensor, name: str) -> np.ndarray:
        """(F, H, W, 3) of latents (1, F, C, h, w), by tiles if whole frames do not fit; and then the clips after it."""
        need = decoding_bytes(self._base, self.size, self.dtype, self.device.type, tiling=False)
        if self.tiling is None and need > available(self.device):
            log.warning("clips of %s are decoded tile by tile: whole ones do not fit on %s", self.size, self.device)
            self.tiling = True
        if self.tiling:
            pipe.vae.enable_tiling()
        try:
            return np.stack(list(frames_of(pipe, latents, self.device, name=name)))
        except torch.OutOfMemoryError:
            if self.tiling is not None:
                raise
        _empty_cache(self.device)
        log.warning("out of memory while decoding %s: it and what follows is decoded tile by tile", name)
        self.tiling = True
        return self._decoded(pipe, latents, name)

    decodes_apart = True
    drawn_at_once = 1

    def encoding(self, on_gpu: bool) -> Aside | None:
        encoder = loading.sketched_encoder(self._base, self.dtype)
        if encoder is None:
            return None
        tokens = (1, self.max_tokens)
        return Aside(
            weights=size_of(encoder), work=held_by([encoder], lambda: encoder(torch.zeros(tokens, dtype=torch.long)))
        )

    def decoding(self, on_gpu: bool) -> Aside:
        """On a GPU by tiles, as it is where memory asks for it."""
        tiling = on_gpu if self.tiling is None else self.tiling
        kind = "cuda" if on_gpu else "cpu"
        work = decoding_bytes(self._base, self.size, self.dtype, kind, tiling=tiling)
        return Aside(weights=size_of(loading.sketched_vae(self._base, self.dtype)), work=work)

    def write_clip(self, path: Path, frames: Sequence[np.ndarray]) -> None:
        write_video(path, frames, fps=self.fps)

    @property
    def fps(self) -> int:
        """Frames a second of the known model that it is, or that its family's defaults are from."""
        return (self._base.known or KNOWN[self.kind.example]).fps

    def drawing_facts(self) -> Mapping[str, Any]:
        assert self._table is not None, "embed() comes before drawing_facts()"
        return {
            "scheduler": dict(self._base.scheduler),
            "dtype": str(self.dtype),
            "embeddings": checksum("embeddings", [self._table]),
        }

    def draw_latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: "NegativeWeights" = None,
        beta: float = 1.0,
    ) -> Tensor:
        """(n, F, C, h, w): the stock pipeline's, of prompts that `embed` had. Nothing is decoded."""
        assert self._table is not None, "embed() comes before draw_latents()"
        embeddings = self._table[[*(self._row[prompt] for prompt in prompts), -1]]
        given = {"transformer": self.denoiser, "text_encoder": None, "tokenizer": None}
        pipe = loading.load_pipeline(self._base, dtype=self.dtype, **given)
        pipe.vae.to(next(self.denoiser.parameters()).device)  # a pipeline is where its first part is
        settings = Settings(guidance_scale=guidance_scale, steps=steps, size=self.size, batch_size=1)
        with attach_weights(pipe, negative, beta):
            drawn = latent_clips(pipe, prompts, seeds, settings, embeddings=embeddings, padded=True)
            return torch.cat([latents.float().cpu() for _, latents in drawn])

    def save_lora(self, directory: Path, adapter: str) -> None:
        """By the stock saver, raw PEFT keys with the metadata that keeps alpha ≠ rank on reload, in float32."""
        loading.save_lora(self.kind, self.denoiser, directory, adapter)


def _scheduler(base: VideoBase) -> Any:
    found: Any = base.scheduler.get("_class_name")
    if found not in base.kind.schedulers:
        raise InputError(f"model {base.name} has a {found}: {base.kind.title} wants {base.kind.wants} scheduler")
    return base.kind.schedulers[found].from_config(base.scheduler)


def _sketched(base: VideoBase) -> nn.Module:
    with META:
        made: nn.Module = base.kind.network(**vars(base.transformer))
    return made


def unwrapped(network: nn.Module, kind: type[nn.Module]) -> Any:
    """A network of this class without what DDP, DeepSpeed or a compiler put around it."""
    inner: Any = network
    while not isinstance(inner, kind):
        within = inner.module if hasattr(inner, "module") else private.uncompiled(inner)
        assert within is not inner, f"{type(inner).__name__} is no {kind.__name__}"
        inner = within
    return inner


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
