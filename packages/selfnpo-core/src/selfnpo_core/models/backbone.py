"""What the training engine asks of a model family. A new family is one class with these members.

A backbone owns the network, the prompts' embeddings and everything else that the family's pipeline needs. The engine
owns the weights that are trained, all randomness and every file of the run. Prompts are rows of the backbone's table
of embeddings, `NULL = -1` being the null prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.system.private import is_fake_tensor

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from selfnpo_core.models.embeddings import EmbeddingsCache

NegativeWeights = str | Mapping[str, Tensor] | None
"""Negative weights to sample with: the name of a PEFT adapter, a full-weight offset by parameter name, or none."""


@runtime_checkable
class Backbone(Protocol):
    """A model family as the engine sees it. It reads all of these attributes, and assigns to `denoiser` only."""

    @property
    def name(self) -> str:
        """The base model as users name it: hub id, folder or file. Goes into npo_config.json as `base_model`."""

    @property
    def family(self) -> str:
        """ "sd15", …"""

    @property
    def base_hash(self) -> str:
        """`weights_hash(denoiser)`, taken when the weights were loaded, before any cast."""

    denoiser: nn.Module
    """The network that is trained. The engine adds adapters to it, moves it to its device, and *assigns* to this
    attribute (a wrapped network, or the teacher while the teacher is asked), so `predict` must look it up at every
    call."""

    @property
    def prediction_type(self) -> str:
        """ "epsilon", "v_prediction", "sample" or "flow" (`selfnpo_core.prediction`)."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the noise that the network was trained with."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch: (channels, height, width) for pictures."""

    @property
    def lora_targets(self) -> Mapping[str, Sequence[str] | str]:
        """PEFT `target_modules` by preset name; at least "attention" and "all"."""

    @property
    def bytes_per_prompt(self) -> int:
        """Size of one prompt's row in the table of embeddings, for the memory estimate."""

    def embed(self, prompts: Sequence[str], cache: "EmbeddingsCache | None" = None) -> None:
        """Fill the table of embeddings with these prompts and the null prompt.

        With a cache all processes of a run do so together (`selfnpo_core.models.embeddings.embedded`), and the table
        is the same, bit for bit, as without. Text encoders are read in the 16 bits that they were stored in, if they
        were, whatever the denoiser's dtype. Afterwards they and the VAE are off the training device, and stay so but
        for the VAE in `draw_samples`.
        """

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """The network's raw output at x_t: (B, *S) float32, t: (B,), prompt: (B,) int64, all on the engine's device.

        Calls `self.denoiser` exactly once with B rows. It casts its inputs to the network's dtype itself and brings
        the rows of the table to x_t's device; autocast is on already where the recipe asks for it. The engine casts
        the output to float32 and does not look at the dtype. Must work with and without gradients, and on tensors
        without numbers (`has_numbers`), of which it must keep none.
        """

    def use_attention(self, name: str, amp: torch.dtype | None = None) -> None:
        """Choose the attention implementation by the recipe's `attention`; "auto" is the family's own choice.

        amp: dtype of the autocast that the network will run under; `None` for none.

        Raises `InputError` for one that the family has not or that cannot run here.
        """

    def draw_samples(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: NegativeWeights,
    ) -> "Sequence[Image]":
        """One picture a prompt (a video family: one strip of frames), for the run's sample grids. `embed` had them all.

        `denoiser` holds the base weights and no adapter is active. Under "a name" that adapter, inactive, is in the
        network (`NegativeAdapters.attach(pipe, {negative: 1.0})`); under a mapping it is the offset of all weights
        (`NegativeDelta`). Brings the VAE in, which decodes no more at a time than fits, and puts it away again, uses
        no randomness but the seeds, and leaves the network as it was.
        """

    def save_lora(self, directory: Path, adapter: str) -> None:
        """Write `adapter` of `denoiser` as directory/pytorch_lora_weights.safetensors.

        By the stock pipeline's `save_lora_weights`, with raw PEFT keys and the LoRA metadata, in float32.
        """


@runtime_checkable
class MovingBackbone(Backbone, Protocol):
    """A family whose samples move: a run shows them as clips, and of each a strip of frames."""

    @property
    def fps(self) -> int:
        """Frames a second."""

    def draw_clips(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: NegativeWeights,
    ) -> "Sequence[np.ndarray]":
        """(F, H, W, 3) uint8 a prompt, all of one shape; else as `draw_samples`, which is not asked then."""

    def write_clip(self, path: Path, frames: "Sequence[np.ndarray]") -> None:
        """Write path, which ends in .mp4, from frames (H, W, 3) uint8."""


@runtime_checkable
class WindowedBackbone(Backbone, Protocol):
    """A video family: for recipes with `chunk_frames` it is asked about windows of clips too."""

    @property
    def window_step(self) -> int:
        """Windows begin and end at multiples of it."""

    def predict_window(self, x_t: Tensor, t: Tensor, prompt: Tensor, *, first: int) -> Tensor:
        """As `predict`, x_t: (B, n, *S) being frames first … first + n − 1 of clips."""


@runtime_checkable
class SamplingBackbone(Backbone, Protocol):
    """A family that draws samples to train on: for recipes with `rollout: samples`."""

    @property
    def sampling(self) -> tuple[float, int]:
        """Guidance scale (1 is none) and steps of these samples, where the recipe does not say."""

    def drawing_facts(self) -> Mapping[str, Any]:
        """What decides the numbers of `draw_latents` beside the denoiser's weights and the arguments.

        As json can hold it: the sampler's settings, dtype, a hash of the prompts' embeddings. `embed` comes before.
        """

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
        """(n, *latent_shape) float32, in host memory: the stock pipeline's latents at these seeds, one a prompt.

        `embed` had all prompts. `denoiser` is the base, on the training device, and `negative`, as for `draw_samples`,
        is on the negative branch at strength beta. Nothing is decoded. Uses no randomness
        but the seeds, and leaves the network as it was.
        """


@runtime_checkable
class LoadingBackbone(Backbone, Protocol):
    """A family as inspection sees it: with the device that it calculates on."""

    @property
    def device(self) -> torch.device:
        """Where it calculates."""


@dataclass(frozen=True, kw_only=True)
class Aside:
    """Bytes of what a family holds beside its denoiser at a time: weights, and what they calculate, at its peak."""

    weights: int
    work: int


@runtime_checkable
class StagedBackbone(Protocol):
    """A family that tells what it will hold when it encodes and draws; also one on the meta device does."""

    def encoding(self, on_gpu: bool) -> Aside | None:
        """Of text encoders at one text, in the dtype that they are read in; without a GPU, of all that is held then
        but the denoiser. `None` where their configurations are not known."""

    def decoding(self, on_gpu: bool) -> Aside:
        """Of the VAE at one sample of a grid, as it is decoded on this device."""

    @property
    def decodes_apart(self) -> bool:
        """Whether the denoiser leaves the device before grids are decoded."""

    @property
    def drawn_at_once(self) -> int:
        """Samples in one forward of `draw_latents` and `draw_samples`, at most."""


@runtime_checkable
class PlacesEmbeddings(Protocol):
    """A family that says where its table of embeddings lies; any other's lies on the training device."""

    @property
    def embeddings_in_host_memory(self) -> bool:
        """Whether the table is in host memory."""


def embeddings_on_device(backbone: Backbone) -> bool:
    return not (isinstance(backbone, PlacesEmbeddings) and backbone.embeddings_in_host_memory)


@runtime_checkable
class MapsBase(Protocol):
    """A family that says how the base waits in host memory; any other's is each process's own."""

    @property
    def base_is_mapped(self) -> bool:
        """Whether its weights are mapped from their file, so that a node's processes share them."""


def is_shared(backbone: Backbone) -> bool:
    return isinstance(backbone, MapsBase) and backbone.base_is_mapped


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is more than a shape and a type: none of a simulation or on the meta device, worth nothing
    afterwards."""
    return not (tensor.is_meta or is_fake_tensor(tensor))
