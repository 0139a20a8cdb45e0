"""Which rows of a denoiser's batch belong to the negative branch of classifier-free guidance.

diffusers has no common word for it, so each pipeline class stands in a table: most stack [negative, positive] into
one batch, some [positive, negative], some call the denoiser once a branch under `cache_context`. What is not in the
table is refused, never guessed. How many prompts there are, and whether guidance is on, is learned from the pipeline's
own call of `encode_prompt`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from selfnpo_core.errors import InputError

Order = Literal["negative first", "positive first", "separate"]
Condition = Literal["null", "prompt"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a pipeline class runs its two branches.

    embeds: position in `encode_prompt`'s result of each negative tensor and of its positive counterpart.
    """

    order: Order = "negative first"
    denoiser: str = "transformer"
    embeds: Mapping[int, int] = field(default_factory=dict)


_SD = Layout(denoiser="unet", embeds={1: 0})
_SDXL = Layout(denoiser="unet", embeds={1: 0, 3: 2})
_COGVIDEOX = Layout(embeds={1: 0})
_SD3 = Layout(embeds={1: 0, 3: 2})
_LTX = Layout(embeds={2: 0, 3: 1})
_WAN = Layout(order="separate", embeds={1: 0})
_FLUX = Layout(order="separate")

LAYOUTS: Mapping[str, Layout] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "StableDiffusionControlNetPipeline": _SD,
    "StableDiffusionControlNetImg2ImgPipeline": _SD,
    "StableDiffusionControlNetInpaintPipeline": _SD,
    "StableDiffusionAdapterPipeline": _SD,
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusionXLImg2ImgPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL,
    "StableDiffusionXLControlNetPipeline": _SDXL,
    "StableDiffusionXLAdapterPipeline": _SDXL,
    "CogVideoXPipeline": _COGVIDEOX,
    "CogVideoXImageToVideoPipeline": _COGVIDEOX,
    "CogVideoXVideoToVideoPipeline": _COGVIDEOX,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "LTXPipeline": _LTX,
    "LuminaPipeline": Layout(order="positive first", embeds={2: 0, 3: 1}),
    "WanPipeline": _WAN,
    "FluxPipeline": _FLUX,
}


class Branches:
    """Watches one pipeline and tells which rows of the current forward are negative.

    check: called once at the beginning of every pipeline call, before any forward.
    """

    def __init__(self, pipe: Any, condition: Condition, check: Callable[[], None]) -> None:
        name = type(pipe).__name__
        if name not in LAYOUTS:
            raise InputError(f"{name} is not supported, its negative branch is not known: use {', '.join(LAYOUTS)}")
        self.layout = LAYOUTS[name]
        if condition not in ("null", "prompt"):
            raise InputError(f"negative condition '{condition}' is unknown: use 'null' or 'prompt'")
        if condition == "prompt" and not self.layout.embeds:
            raise InputError(f"{name} encodes its two prompts apart: use negative condition 'null'")
        if getattr(pipe, "_negative_weights", None) is not None:
            raise InputError("this pipeline has negative weights attached already: detach them first")
        self._pipe, self._condition, self._check = pipe, condition, check
        self.denoiser = bare(getattr(pipe, self.layout.denoiser))
        self._prompts: int | None = None  # rows of one branch
        self._guided = False
        self._context: str | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._encode_prompt = self._pipe.encode_prompt
        self._signature = inspect.signature(self._encode_prompt)
        self._pipe.encode_prompt = self._watched_encode_prompt
        self._pipe._negative_weights = self
        if self.layout.order == "separate":
            self._cache_context = self.denoiser.cache_context
            self.denoiser.cache_context = self._watched_cache_context

    def stop(self) -> None:
        """Leave pipeline and denoiser as they were found."""
        del self._pipe.encode_prompt
        self._pipe._negative_weights = None
        if self.layout.order == "separate":
            del self.denoiser.cache_context

    def rows(self, batch: int) -> slice | None:
        """The negative rows among `batch`, a multiple of the denoiser's batch; `None` where there are none."""
        if self.layout.order == "separate":
            return self._whole(batch)
        if self._prompts is None:
            raise InputError("negative weights act in pipeline calls only: call the pipeline, or detach them")
        if not self._guided:
            return None
        if batch % (2 * self._prompts):
            raise InputError(
                f"cannot tell the negative rows of a batch of {batch} for {self._prompts} prompts: perturbed-attention "
                "and other guidance with more branches cannot be combined with negative weights"
            )
        half = batch // 2
        return slice(0, half) if self.layout.order == "negative first" else slice(half, batch)

    def _whole(self, batch: int) -> slice | None:
        if self._context == "uncond":
            return slice(0, batch)
        if self._context == "cond":
            return None
        raise InputError(f"the pipeline runs an unknown branch '{self._context}': detach the negative weights")

    def _watched_encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        given = self._signature.bind(*args, **kwargs)
        given.apply_defaults()
        result = self._encode_prompt(*args, **kwargs)
        self._guided = bool(given.arguments.get("do_classifier_free_guidance", False))
        embeds = result[0] if isinstance(result, tuple) else result
        self._prompts = len(embeds) if isinstance(embeds, Tensor) else None
        if self._condition == "prompt" and self._guided:
            swapped = list(result)
            for negative, positive in self.layout.embeds.items():
                swapped[negative] = result[positive]
            result = tuple(swapped)
        return result

    @contextmanager
    def _watched_cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        with self._cache_context(name, **kwargs):
            self._context = name
            try:
                yield
            finally:
                self._context = None


def bare(denoiser: nn.Module) -> nn.Module:
    """The network inside of what `torch.compile` made of it."""
    return getattr(denoiser, "_orig_mod", denoiser)


def is_compiled(pipe: Any, name: str) -> bool:
    """Whether the pipeline's denoiser, or a part of it, goes through `torch.compile`."""
    denoiser = getattr(pipe, name)
    if hasattr(denoiser, "_orig_mod"):
        return True
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in denoiser.modules())
