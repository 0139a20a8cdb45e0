"""Which rows of a denoiser's batch belong to the negative branch of classifier-free guidance.

diffusers has no common word for it, so each pipeline class stands in a table: most stack [negative, positive] into one
batch, some [positive, negative], some call the denoiser once a branch under `cache_context`. What is not in the table
is refused, never guessed. How many rows a branch has, and whether guidance is on, is learned from the pipeline's own
call of `encode_prompt`, or of `prepare_latents` where the first is not told; every forward is checked against it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from selfnpo_core.adapters.hooks import bare, replace, strength
from selfnpo_core.errors import InputError

log = logging.getLogger(__name__)
Order = Literal["negative first", "positive first", "separate"]
Condition = Literal["null", "prompt"]
Block = tuple[slice, float]
"""Some of the rows, and what they get of the negative weights, in units of the strength that is attached."""
OF_NEGATIVE_ROWS = (1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class BranchLayout:
    """How a pipeline class runs its two branches.

    order: of the branches in the batch, or "separate": a forward for each, named by `cache_context`.
    denoisers: the pipeline's components that are called; one that a pipeline does not have is passed over.
    embeds: place in `encode_prompt`'s result of each negative tensor → place of its positive counterpart; empty where
        the negative prompt is encoded in a call of its own.
    counted_by: the method whose call tells how many rows a branch has.
    uneven: layers, by the beginning of their names, that see all rows as one sequence in which rows are not equally
        long; they cannot be split by branch.
    """

    order: Order = "negative first"
    denoisers: tuple[str, ...] = ("transformer",)
    embeds: Mapping[int, int] = field(default_factory=dict)
    counted_by: Literal["encode_prompt", "prepare_latents"] = "encode_prompt"
    uneven: tuple[str, ...] = ()


_SD = BranchLayout(denoisers=("unet",), embeds={1: 0})
_SDXL = BranchLayout(denoisers=("unet",), embeds={1: 0, 3: 2})
_COGVIDEOX = BranchLayout(embeds={1: 0})
_SD3 = BranchLayout(embeds={1: 0, 3: 2})
_LTX = BranchLayout(embeds={2: 0, 3: 1})
_LUMINA = BranchLayout(order="positive first", embeds={2: 0, 3: 1})
_WAN = BranchLayout(order="separate", denoisers=("transformer", "transformer_2"), embeds={1: 0})
_TWO_CALLS = BranchLayout(order="separate")
_Z_IMAGE = BranchLayout(
    order="positive first", embeds={1: 0}, counted_by="prepare_latents", uneven=("cap_embedder.", "siglip_embedder.")
)

LAYOUTS: Mapping[str, BranchLayout] = {
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
    "StableDiffusionXLControlNetImg2ImgPipeline": _SDXL,
    "StableDiffusionXLControlNetInpaintPipeline": _SDXL,
    "StableDiffusionXLAdapterPipeline": _SDXL,
    "CogVideoXPipeline": _COGVIDEOX,
    "CogVideoXImageToVideoPipeline": _COGVIDEOX,
    "CogVideoXVideoToVideoPipeline": _COGVIDEOX,
    "CogVideoXFunControlPipeline": _COGVIDEOX,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "StableDiffusion3ControlNetPipeline": _SD3,
    "LTXPipeline": _LTX,
    "LTXImageToVideoPipeline": _LTX,
    "LTXConditionPipeline": _LTX,
    "LuminaPipeline": _LUMINA,
    "StableCascadePriorPipeline": BranchLayout(order="positive first", denoisers=("prior",), embeds={2: 0, 3: 1}),
    "StableCascadeDecoderPipeline": BranchLayout(order="positive first", denoisers=("decoder",), embeds={2: 0, 3: 1}),
    "WanPipeline": _WAN,
    "WanImageToVideoPipeline": _WAN,
    "FluxPipeline": _TWO_CALLS,
    "Flux2KleinPipeline": _TWO_CALLS,
    "QwenImagePipeline": _TWO_CALLS,
    "QwenImageImg2ImgPipeline": _TWO_CALLS,
    "QwenImageInpaintPipeline": _TWO_CALLS,
    "QwenImageEditPipeline": _TWO_CALLS,
    "QwenImageEditPlusPipeline": _TWO_CALLS,
    "ZImagePipeline": _Z_IMAGE,
    "HunyuanVideoPipeline": _TWO_CALLS,
}


NEGATIVE, RULE = "_selfnpo", "_selfnpo_rule"
"""Attributes of a denoiser that hold its `Branches`: those of negative weights, and of a guidance rule around them."""


class Branches:
    """Watches one pipeline and tells which rows of the forward that is running are negative.

    check: called at the beginning of every pipeline call, before any forward.
    mark: `NEGATIVE` or `RULE`. A rule is attached last and detached first.
    shares: what the negative rows, and all others, get of the negative weights.
    """

    def __init__(
        self,
        pipe: Any,
        condition: Condition,
        check: Callable[[], None],
        mark: str = NEGATIVE,
        shares: tuple[float, float] = OF_NEGATIVE_ROWS,
    ) -> None:
        self.denoisers = find_denoisers(pipe, condition) if mark == NEGATIVE else known_denoisers(pipe)
        if any(RULE in vars(denoiser) for denoiser in self.denoisers.values()):
            raise InputError("this model has a guidance rule attached: detach() it first, it is to be attached last")
        self.layout = LAYOUTS[type(pipe).__name__]
        self.pipe, self._condition, self._check, self._mark = pipe, condition, check, mark
        self.batch = 0  # rows of the running forward
        negative, positive = (strength(share, "a share of the negative weights") for share in shares)
        in_order = (positive, negative) if self.layout.order == "positive first" else (negative, positive)
        self._one, self._both = {True: (negative,), False: (positive,)}, _merged(in_order)
        self._asked: tuple[float, ...] | None = None
        self._prompts: int | None = None  # rows of one branch; None outside of a pipeline call
        self._guided = self._encoded = False
        self._context: str | None = None
        self.where: Mapping[str, Any] = {}  # what the pipeline said of the step when it named the branch
        self._only_negative, self._met = positive == 0, False  # whether a negative branch ran in this call

    def watch(self, undo: ExitStack) -> None:
        """Begin to watch; `undo` leaves pipeline and denoisers as they were found."""
        self._encode_prompt = self.pipe.encode_prompt
        self._signature = inspect.signature(self._encode_prompt)
        self._free = self.pipe.maybe_free_model_hooks
        watched = functools.partial(self._watched_encode_prompt)  # a rule around this one reads the signature too
        replace(undo, self.pipe, "encode_prompt", functools.update_wrapper(watched, self._encode_prompt))
        if self.layout.counted_by == "prepare_latents":
            prepare: Any = self.pipe.prepare_latents
            replace(undo, self.pipe, "prepare_latents", functools.partial(self._watched_prepare_latents, prepare))
        replace(undo, self.pipe, "maybe_free_model_hooks", self._end_of_call)
        for denoiser in self.denoisers.values():
            replace(undo, denoiser, self._mark, self)
            if self.layout.order == "separate":
                cache_context: Any = denoiser.cache_context
                replace(undo, denoiser, "cache_context", self._watched(cache_context))

    def check_outermost(self) -> None:
        """Before these negative weights are taken off: nothing was put around them."""
        if any(RULE in vars(denoiser) for denoiser in self.denoisers.values()):
            raise InputError("a guidance rule was attached after the negative weights: detach() it first")

    def enter(self, batch: int) -> None:
        """A forward of `batch` rows begins."""
        self.batch = batch
        self._shares()

    @contextmanager
    def asked(self, shares: tuple[float, ...]) -> Iterator[None]:
        """The forwards in a `with` block are of so many equal parts, each with a share of its own, of any branch."""
        self._asked = _merged(shares)
        try:
            yield
        finally:
            self._asked = None

    def blocks(self, size: int) -> list[Block]:
        """A first dimension in which each row of the batch has an equal share, by what the rows get of the weights.

        A layer may see more than the batch (frames, patches), but always whole rows, in the batch's order.
        """
        shares = self._shares()
        if len(shares) > 1 and size % self.batch:
            raise InputError(f"a layer got {size} rows in a batch of {self.batch}: this LoRA cannot be split by branch")
        each = size // len(shares)
        return [(slice(k * each, (k + 1) * each), share) for k, share in enumerate(shares)]

    def _shares(self) -> tuple[float, ...]:
        """Of the equal parts of the running forward's rows."""
        if self._asked is not None:
            return self._asked
        negative = self.has_negative(self.batch)
        return self._both if negative and self.layout.order != "separate" else self._one[negative]

    def has_negative(self, batch: int) -> bool:
        """Whether there are negative rows in a forward of so many."""
        if self.layout.order == "separate":
            if self._context not in ("cond", "uncond"):
                raise InputError(f"{_OUTSIDE} (branch: {self._context})")
            return self._context == "uncond"
        if self._prompts is None:
            raise InputError(_OUTSIDE)
        if batch == self._prompts:  # guidance off, past its end, or an extra forward of the positive branch
            return False
        if self._guided and batch == 2 * self._prompts:
            return True
        raise InputError(
            f"cannot tell the negative rows of a batch of {batch} for {self._prompts} prompts with guidance "
            f"{'on' if self._guided else 'off'}: perturbed-attention guidance and others with more branches do not "
            "combine with negative weights, leave them out"
        )

    @property
    def guided(self) -> bool:
        """Whether the running pipeline call has guidance on, where its `encode_prompt` is told so."""
        return self._guided

    def check_even(self, layer: str) -> None:
        """Raise `InputError` for a layer, by its name, that cannot be split by branch."""
        if layer.startswith(self.layout.uneven):
            raise InputError(
                f"'{layer}' sees all prompts as one sequence and cannot be split by branch: leave it out of a LoRA, or "
                "attach whole weights with NegativeDelta (mode 'swap')"
            )

    def _begin(self) -> None:
        for name, denoiser in self.denoisers.items():
            if bare(getattr(self.pipe, name)) is not denoiser:
                raise InputError(f"the pipeline's {name} was replaced: detach() the negative weights, attach them anew")
        self._check()

    def _watched_prepare_latents(self, prepare: Callable[..., Any], batch_size: int, *args: Any, **kwargs: Any) -> Any:
        """Of a pipeline that does not ask `encode_prompt` for embeddings that it was given, nor tells it of pictures
        a prompt."""
        self._begin()
        self._prompts, self._guided = batch_size, bool(self.pipe.do_classifier_free_guidance)
        if not self._guided:
            self._say_unused()
        elif self._condition == "prompt" and not self._encoded:
            raise InputError("condition 'prompt' wants the prompts as texts here, not as embeddings")
        return prepare(batch_size, *args, **kwargs)

    def _watched_encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        self._begin()
        self._encoded = True
        given = self._signature.bind(*args, **kwargs)
        given.apply_defaults()
        result = self._encode_prompt(*args, **kwargs)
        self._guided = bool(given.arguments.get("do_classifier_free_guidance", False))
        self._prompts = len(result[0]) if isinstance(result[0], Tensor) else None
        if self.layout.order != "separate" and self.layout.counted_by == "encode_prompt" and not self._guided:
            self._say_unused()
        if self._condition == "prompt" and self._guided:
            if _has_text(given.arguments.get("negative_prompt")):
                raise InputError("a negative prompt has no effect under condition 'prompt': leave out one of the two")
            result = tuple(result[self.layout.embeds.get(place, place)] for place in range(len(result)))
        return result

    def _end_of_call(self) -> None:
        """Every stock pipeline's last act. Forwards after it are of another pipeline with the same denoiser."""
        if self.layout.order == "separate" and not self._met:
            self._say_unused()
        self._prompts, self._guided, self._met, self._encoded = None, False, False, False
        self._free()

    def _say_unused(self) -> None:
        """Once: weights of the negative branch have nothing to act on where none runs."""
        if self._only_negative and self._mark == NEGATIVE:
            log.warning(
                "the negative weights change nothing: this call runs no negative branch (guidance is off at a scale of "
                "1, of distilled models always, and of Flux without a negative prompt): give a guidance scale above 1, "
                "or the rule neon"
            )
            self._only_negative = False

    def _watched(self, cache_context: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def watched(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            with cache_context(name, *args, **kwargs):
                before, self._context, self.where = self._context, name, kwargs
                self._met |= name == "uncond"
                try:
                    yield
                finally:
                    self._context = before

        return watched


_OUTSIDE = "the denoiser runs outside of a call of the pipeline it has negative weights for: detach() them first"


def _merged(shares: tuple[float, ...]) -> tuple[float, ...]:
    """Rows that get the same are one part."""
    return shares[:1] if all(share == shares[0] for share in shares) else shares


def find_denoisers(pipe: Any, condition: Condition) -> dict[str, nn.Module]:
    """Component name → denoiser that can be given negative weights, or an error that says why there is none."""
    denoisers = known_denoisers(pipe)
    kind = type(pipe).__name__
    layout = LAYOUTS[kind]
    if condition not in ("null", "prompt"):
        raise InputError(f"negative condition '{condition}' is unknown: use 'null' or 'prompt'")
    if condition == "prompt" and not layout.embeds:
        raise InputError(f"{kind} encodes its two prompts apart: use condition 'null', and give it a negative prompt")
    if any(NEGATIVE in vars(denoiser) for denoiser in denoisers.values()):
        raise InputError("this model has negative weights attached already: detach() them first")
    return denoisers


def known_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """Component name → denoiser of a pipeline that stands in the table."""
    kind = type(pipe).__name__
    if kind not in LAYOUTS:
        raise InputError(
            f"negative weights do not know {kind}, nor which of its rows are negative: use one of {', '.join(LAYOUTS)}"
        )
    found = {name: getattr(pipe, name, None) for name in LAYOUTS[kind].denoisers}
    return {name: bare(module) for name, module in found.items() if module is not None}


def _has_text(prompt: str | list[str] | None) -> bool:
    return any(prompt) if isinstance(prompt, list | tuple) else bool(prompt)
