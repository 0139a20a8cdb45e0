"""What all families of image models share, as the training engine sees them; each is a subclass in a file of its own.

Tokenizers and VAE are in memory only until prompts are embedded and while samples are drawn. Text encoders are read
when the first prompt is to be encoded, if there is one.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from selfnpo_core.adapters.attach import attach_weights
from selfnpo_core.errors import InputError
from selfnpo_core.models.backbone import Aside
from selfnpo_core.models.components import size_of
from selfnpo_core.models.embeddings import EmbeddingsCache, Encode, Encoder, embedded, tokenizer_facts
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.models.lengths import say_what_is_cut
from selfnpo_core.models.loading import one_line_errors
from selfnpo_core.models.storage import compute_dtype
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.system.caches import checksum
from selfnpo_core.system.devices import best_device
from selfnpo_core.training.simulation import held_by
from selfnpo_image.base import ImageBase
from selfnpo_image.drawing import Settings, Told, draw, draw_latents
from selfnpo_image.kinds import Kind, sizeless
from selfnpo_image.loading import (
    check_scheduler,
    clip_tokens,
    encoder_dtypes,
    encoder_files,
    known_configs,
    load_encoders,
    load_pipeline,
    local,
    make_scheduler,
    sketched,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from selfnpo_core.models.backbone import NegativeWeights

META = torch.device("meta")
EMBEDDINGS = ("prompt_embeds", "pooled_prompt_embeds")
"""Arguments of the stock pipelines for what `_encode` gives, in its order."""


class ImageBackbone:
    """A model as the training engine sees it (`selfnpo_core.models.backbone.Backbone`).

    height, width: of the pictures, in pixels; None is what the model was made for. On the meta device it is made by its
    configurations alone, without weights: see `sketch`. tiling: whether `draw_samples` decodes tile by tile.
    null_prompt: what the null branch is given; `None` is what the stock pipeline gives it.
    Raises `InputError` for a base of another family.
    """

    kind: ClassVar[Kind]
    lora_targets: Mapping[str, Sequence[str] | str]
    embeddings_in_host_memory = True
    sampling = 2.0, 10
    """What finished samples were found to be good at to train on, on small models; not tuned on large ones."""

    def __init__(
        self,
        base: ImageBase,
        *,
        height: int | None = None,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "auto",
        tiling: bool = False,
        null_prompt: str | None = None,
    ):
        self.tiling, self.null_prompt = tiling, null_prompt
        base.must_be(self.kind)
        self.name, self.dtype = base.name, dtype
        self.device = best_device(device) if isinstance(device, str) else device
        with one_line_errors(base.source):
            pipe = self._sketched(base) if self.device == META else self._loaded(base)
            self._describe(pipe, height, width)
        if self.device != META:
            setattr(pipe, self.kind.denoiser, None)
            self._rest: Any = pipe

    @classmethod
    def sketch(cls, base: ImageBase, **options: Any) -> ImageBackbone | None:
        """A model without its weights: enough to tell what training it will take.

        options: of the class, but the device. `None` where its configurations would have to be fetched.
        """
        base.must_be(cls.kind)
        return None if known_configs(base) is None else cls(base, device=META, **options)

    def _loaded(self, base: ImageBase) -> Any:
        """The pipeline without text encoders, read as it was stored. The base's hash is taken before any cast."""
        self._base = local(base)
        self._encoder_files = encoder_files(self._base)
        self._encoder_dtypes = encoder_dtypes(self._base, self.dtype)
        unread: dict[str, Any] = dict.fromkeys(self.kind.text_encoders)
        pipe = load_pipeline(self._base, dtype=None, **unread)
        self.base_hash = weights_hash(getattr(pipe, self.kind.denoiser))
        for module in (getattr(pipe, part) for part in self.kind.parts):
            if module is not None and any(tensor.dtype != self.dtype for tensor in module.parameters()):
                module.to(self.dtype)
        return pipe

    def _sketched(self, base: ImageBase) -> Any:
        """What `_describe` asks of a pipeline, from configurations alone."""
        configs = known_configs(base)
        assert configs is not None, f"the configurations of {base.name} are not known"
        self.base_hash, self._base = "", base
        is_here = base.source.kind != "hub"
        self._encoder_dtypes = (
            encoder_dtypes(base, self.dtype) if is_here else dict.fromkeys(self.kind.text_encoders, self.dtype)
        )
        network, scheduler = configs[f"{self.kind.denoiser}/config.json"], configs["scheduler/scheduler_config.json"]
        on_hub = base.source.kind == "hub"
        tokens = self.kind.tokens.get(self.kind.text_encoders[0]) or clip_tokens(base)
        with META:
            denoiser = getattr(diffusers, self.kind.network).from_config(dict(network)).to(self.dtype)
        return SimpleNamespace(
            scheduler=getattr(diffusers, scheduler["_class_name"]).from_config(dict(scheduler))
            if on_hub
            else make_scheduler(base),
            vae=SimpleNamespace(config=configs["vae/config.json"]),
            tokenizer=SimpleNamespace(model_max_length=tokens),
            tokenizer_max_length=tokens,
            **{self.kind.denoiser: denoiser},
        )

    def _describe(self, pipe: Any, height: int | None, width: int | None) -> None:
        """What a pipeline's configurations tell. Raises `InputError` for a size that the model cannot draw."""
        self.denoiser: nn.Module = getattr(pipe, self.kind.denoiser).requires_grad_(False).eval()
        self.prediction_type = check_scheduler(pipe.scheduler, self.kind, self.name)
        self._scheduler = dict(pipe.scheduler.config)
        self.latent_shape: tuple[int, ...] = self._latent_shape(pipe, height, width)
        self.schedule = NoiseSchedule.from_scheduler(pipe.scheduler, self._shift(pipe))
        rows, columns = (n * self.kind.pixels(pipe.vae.config) for n in self.latent_shape[1:])
        self.size = rows, columns
        self._row_shapes = self._shapes_of_rows(pipe)
        self.bytes_per_prompt = sum(math.prod(shape) for shape in self._row_shapes) * self.dtype.itemsize
        self._tokens = self.kind.tokens.get(self.kind.text_encoders[0]) or int(pipe.tokenizer.model_max_length)
        self._rest = None
        self._table: tuple[Tensor, ...] = ()
        self._row: dict[str, int] = {}

    @property
    def family(self) -> str:
        return self.kind.name

    @property
    def text_encoder_on_device(self) -> bool:
        return self._rest is not None and getattr(self._rest, self.kind.text_encoders[0]) is not None

    @property
    def vae_on_device(self) -> bool:
        return self._rest is not None

    def _shift(self, pipe: Any) -> float | None:
        """mu of a schedule that shifts its timesteps by resolution, for these latents; `None` for any other."""
        return None

    @abstractmethod
    def _encode(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """What the denoiser is told of each text: tensors whose first dimension is the texts."""

    @abstractmethod
    def _encode_null(self, pipe: Any) -> tuple[Tensor, ...]:
        """The same, one row, of the negative branch of a stock pipeline without a negative prompt."""

    @abstractmethod
    def _shapes_of_rows(self, pipe: Any) -> tuple[tuple[int, ...], ...]:
        """Of one text's row in each of `_encode`'s tensors, as the configurations tell."""

    @abstractmethod
    def _told(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        """The denoiser's arguments beside x_t and t. rows: of `_encode`, in the network's dtype."""

    def embed(self, prompts: Sequence[str], cache: EmbeddingsCache | None = None) -> None:
        """Table of what the prompts say, in host memory, the null prompt's row last; then drop what made it."""
        if self.device == META:
            shapes = [(len(prompts) + 1, *shape) for shape in self._row_shapes]
            self._table = tuple(torch.empty(shape, dtype=self.dtype, device="meta") for shape in shapes)
            return
        pipe = self._pipeline(encoders=False)
        say_what_is_cut(prompts, self.kind.readers(pipe))
        tokenizers = [getattr(pipe, part.replace("text_encoder", "tokenizer")) for part in self.kind.text_encoders]
        encoder = Encoder(
            load=self._load_encoders,
            files={**self._encoder_files, "code": Path(inspect.getfile(type(self)))},
            facts={
                "family": self.family,
                "dtype": str(self.dtype),
                "encoders": {part: str(dtype) for part, dtype in self._encoder_dtypes.items()},
                "tokenizers": [one and tokenizer_facts(one) for one in tokenizers],
                "settings": {key: value for key, value in pipe.config.items() if isinstance(value, bool | int | float)},
            },
            device=self.device,
        )
        self._table = embedded([*prompts, self.null_prompt], encoder, cache)
        self._row = {text: row for row, text in enumerate(prompts)}
        self._release()

    def _load_encoders(self) -> Encode:
        pipe = self._pipeline(encoders=True)
        pipe.register_modules(**{self.kind.denoiser: self.denoiser})  # some pipelines ask it for the text's width
        for name in self.kind.text_encoders:
            if (encoder := getattr(pipe, name)) is not None:
                encoder.to(self.device)

        def encode(text: str | None) -> tuple[Tensor, ...]:
            rows = self._encode_null(pipe) if text is None else self._encode(pipe, [text])
            return tuple(part[0].to("cpu", self.dtype) for part in rows)

        return encode

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """The network's raw output at x_t: (B, C, H, W), t: (B,), prompt: (B,) rows of the table."""
        assert self._table, "embed() comes before predict()"
        dtype = compute_dtype(self.denoiser)
        rows = tuple(part[prompt.to(part.device)].to(x_t.device, dtype) for part in self._table)
        output: Tensor = self._call(x_t.to(dtype), t, self._told(rows))
        return output

    def _call(self, x_t: Tensor, t: Tensor, told: dict[str, Any]) -> Tensor:
        return cast(Tensor, self.denoiser(x_t, t, **told, return_dict=False)[0])

    def use_attention(self, name: str, amp: torch.dtype | None = None) -> None:
        """ "auto" leaves diffusers' choice; "sdpa", "eager", or "xformers" on CUDA."""
        if name == "auto":
            return
        processors = {"sdpa": AttnProcessor2_0, "eager": AttnProcessor}
        network: Any = self.denoiser
        if name in processors:
            network.set_attn_processor(processors[name]())
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
        negative: NegativeWeights,
    ) -> Sequence[Image]:
        """One picture a prompt by the stock pipeline, told what the table says, with the negative weights on its
        negative branch. No text encoder is read."""
        device = next(self.denoiser.parameters()).device
        pipe = self._pipeline(encoders=False)
        pipe.vae.to(device)
        pipe.vae.enable_slicing()  # one picture at a time
        if self.tiling:
            pipe.vae.enable_tiling()
        pipe.register_modules(**{self.kind.denoiser: self.denoiser})
        height, width = self.size
        settings = Settings(guidance_scale=guidance_scale, steps=steps, height=height, width=width)
        # A prepared network answers in float32, whatever its weights are; the pipeline hands that on to the VAE.
        cast_back = self.denoiser.register_forward_hook(lambda _module, _inputs, output: _cast(output, self.dtype))
        try:
            with attach_weights(pipe, negative):
                told = self._embeddings(prompts, device, guidance_scale > 1)
                drawn = draw(pipe, prompts, seeds, settings, kind=self.kind, told=told)
                return [picture for _, picture in drawn]
        finally:
            cast_back.remove()
            setattr(pipe, self.kind.denoiser, None)
            self._release()

    decodes_apart = False
    drawn_at_once = Settings.batch_size
    upcasts_vae: ClassVar[bool] = False
    """Whether the stock pipeline decodes in float32 with a VAE in float16 that says that it wants it."""

    def encoding(self, on_gpu: bool) -> Aside:
        found = [sketched(self._base, part, dtype) for part, dtype in self._encoder_dtypes.items()]
        encoders = [(part, one) for part, one in zip(self._encoder_dtypes, found, strict=True) if one is not None]
        work = [held_by([one], partial(self._read, one, part)) for part, one in encoders]
        beside = 0 if on_gpu else self.decoding(on_gpu).weights
        return Aside(weights=beside + sum(size_of(one) for _, one in encoders), work=max(work))

    def _read(self, encoder: nn.Module, part: str) -> object:
        tokens = self.kind.tokens.get(part, self._tokens)
        return encoder(torch.zeros((1, tokens), dtype=torch.long), output_hidden_states=True)

    def decoding(self, on_gpu: bool) -> Aside:
        vae: Any = sketched(self._base, "vae", self.dtype)
        if self.upcasts_vae and self.dtype == torch.float16 and vae.config.force_upcast:
            vae = vae.float()
        if self.tiling:
            vae.enable_tiling()
        x = self._decoded()
        return Aside(
            weights=size_of(vae), work=held_by([vae], lambda: vae.decode(torch.empty(x, dtype=vae.dtype)).sample)
        )

    def _decoded(self) -> tuple[int, ...]:
        """The shape of one sample as the VAE decodes it."""
        return (1, *self.latent_shape)

    def drawing_facts(self) -> Mapping[str, Any]:
        return {
            "pipeline": self.kind.pipeline.__name__,
            "scheduler": self._scheduler,
            "dtype": str(self.dtype),
            "embeddings": checksum("embeddings", self._table),
        }

    def draw_latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: NegativeWeights = None,
        beta: float = 1.0,
    ) -> Tensor:
        """(n, C, h, w): the stock pipeline's, told what the table says. Nothing is encoded or decoded."""
        pipe, (height, width) = self._pipeline(encoders=False), self.size
        device = next(self.denoiser.parameters()).device
        pipe.vae.to(device)  # a pipeline is where its first part is
        pipe.register_modules(**{self.kind.denoiser: self.denoiser})
        settings = Settings(guidance_scale=guidance_scale, steps=steps, height=height, width=width)
        try:
            with attach_weights(pipe, negative, beta):
                told = self._embeddings(prompts, device, guidance_scale > 1)
                return draw_latents(pipe, told, seeds, settings, kind=self.kind)
        finally:
            setattr(pipe, self.kind.denoiser, None)
            self._release()

    def _embeddings(self, prompts: Sequence[str], device: torch.device, guided: bool) -> Told:
        """The stock pipeline's arguments for these prompts, and for the null prompt where guidance is on."""

        def told(part: slice) -> dict[str, Any]:
            own = [self._row[prompt] for prompt in prompts[part]]
            found = self._arguments(self._rows(own, device))
            if guided:
                null = self._arguments(self._rows([-1] * len(own), device))
                found |= {f"negative_{name}": value for name, value in null.items()}
            return found

        return told

    def _rows(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
        return tuple(part[list(rows)].to(device) for part in self._table)

    def _arguments(self, rows: tuple[Tensor, ...]) -> dict[str, Any]:
        """The stock pipeline's arguments for one branch. rows: of `_encode`."""
        return dict(zip(EMBEDDINGS, rows, strict=False))

    def save_lora(self, directory: Path, adapter: str) -> None:
        """By the stock saver. Raw PEFT keys: the converter to diffusers' own loses the layers outside attention."""
        save_lora(self.kind, self.denoiser, directory, adapter)

    def _pipeline(self, *, encoders: bool) -> Any:
        """The pipeline without its denoiser, with or without text encoders: what is held, the rest read anew.

        Encoders are in the 16 bits that they were stored in, if they were, whatever the denoiser's dtype is.
        """
        if self._rest is None or (encoders and not self.text_encoder_on_device):
            held = {} if self._rest is None else self._rest.components
            given = {} if encoders else dict.fromkeys(self.kind.text_encoders)
            given |= {name: part for name, part in held.items() if part is not None}
            given[self.kind.denoiser] = self.denoiser
            if encoders:
                given |= load_encoders(self._base, self._encoder_dtypes)
            pipe = load_pipeline(self._base, dtype=self.dtype, **given)
            for part, dtype in self._encoder_dtypes.items() if encoders else ():
                encoder = getattr(pipe, part)
                if encoder.dtype != dtype:  # a single file's came with the pipeline
                    encoder.to(dtype)
            setattr(pipe, self.kind.denoiser, None)
            self._rest = pipe
        return self._rest

    def _release(self) -> None:
        self._rest = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _latent_shape(self, pipe: DiffusionPipeline, height: int | None, width: int | None) -> tuple[int, ...]:
        """(channels, height, width) for pictures of this size in pixels."""
        network: Any = getattr(pipe, self.kind.denoiser)
        own, factor = self.kind.own_sides(network.config, self.name), self.kind.pixels(cast(Any, pipe).vae.config)
        if own is None:
            if height is None or width is None:
                raise sizeless(self.kind.denoiser, self.name)
            own = (height // factor, width // factor)
        step = factor * self.kind.granularity(network.config)
        if wrong := [n for n in (height, width) if n is not None and n % step]:
            near = max(step, round(wrong[0] / step) * step)
            raise InputError(
                f"a height or width of {wrong[0]} is not possible: use multiples of {step}, such as {near}"
            )
        rows, columns = (given // factor if given else n for given, n in zip((height, width), own, strict=True))
        return self._channels(network.config), rows, columns

    def _channels(self, network: Any) -> int:
        """Of latents, by the denoiser's configuration."""
        return int(network.in_channels)

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
        cast(Any, self.denoiser).enable_xformers_memory_efficient_attention()


def _cast(output: Any, dtype: torch.dtype) -> Any:
    """A denoiser's output, a tuple or list or one of diffusers' classes, in another dtype."""
    if isinstance(output, Tensor):
        return output.to(dtype)
    if isinstance(output, tuple | list):
        return type(output)(_cast(part, dtype) for part in output)
    output.sample = output.sample.to(dtype)
    return output


def save_lora(kind: Kind, network: Any, directory: Path, adapter: str) -> None:
    """directory/pytorch_lora_weights.safetensors in float32, with the metadata that keeps alpha ≠ rank on reload."""
    layers = get_peft_model_state_dict(network, adapter_name=adapter)
    made: Any = kind.pipeline
    made.save_lora_weights(
        directory,
        safe_serialization=True,
        **{
            f"{kind.denoiser}_lora_layers": {name: t.float().contiguous().cpu() for name, t in layers.items()},
            f"{kind.denoiser}_lora_adapter_metadata": network.peft_config[adapter].to_dict(),
        },
    )
