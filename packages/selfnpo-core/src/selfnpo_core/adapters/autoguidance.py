"""Autoguidance (2406.02507): away from an earlier state of the model, asked with the same prompt.

    ε̂ = ε[θ_earlier](x_t, t, c) + g·(ε[θ](x_t, t, c) − ε[θ_earlier](x_t, t, c))

The earlier model reads the prompt with its own text encoder, which may have been trained along with the denoiser.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selfnpo_core.adapters.branches import LAYOUTS, known_denoisers
from selfnpo_core.adapters.hooks import bare, replace
from selfnpo_core.adapters.negative_delta import NegativeDelta
from selfnpo_core.errors import InputError
from selfnpo_core.models.loading import quiet


@contextmanager
def autoguidance(pipe: Any, earlier: Any) -> Iterator[None]:
    """Within the block `earlier`, a pipeline of the same kind on the same device, is the negative branch of `pipe`.

    Raises `InputError` for a pipeline of another kind or size, and for one whose branches are not known.
    """
    network, old = _only(pipe), _only(earlier)
    if type(earlier) is not type(pipe) or _shapes(network) != _shapes(old):
        raise InputError("the earlier model is of another kind or size: give an earlier state of the same model")
    embeds = LAYOUTS[type(pipe).__name__].embeds
    if not embeds:
        raise InputError(f"{type(pipe).__name__} encodes its two prompts apart: autoguidance cannot be put on it")
    own = dict(network.named_parameters())
    delta = {name: (p.detach() - own[name].detach()) for name, p in old.named_parameters()}
    encode = pipe.encode_prompt

    @functools.wraps(encode)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("prompt_embeds") is not None:
            raise InputError("autoguidance reads the prompt with two text encoders: give the prompt as text")
        result, before = list(encode(*args, **kwargs)), earlier.encode_prompt(*args, **kwargs)
        for negative, positive in embeds.items():
            if result[negative] is not None:
                result[negative] = before[positive]
        return tuple(result)

    with ExitStack() as undo:
        replace(undo, pipe, "encode_prompt", encode_prompt)
        undo.enter_context(NegativeDelta.attach(pipe, delta))
        yield


def load_earlier(pipe: Any, folder: Path) -> Any:
    """The pipeline in a diffusers folder, of the class of `pipe`."""
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is no diffusers folder (no model_index.json): give an earlier state of the model")
    try:
        with quiet():
            return type(pipe).from_pretrained(folder, use_safetensors=True, torch_dtype=_only(pipe).dtype)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{folder} cannot be loaded ({detail}): give an earlier state of the model") from error


def _only(pipe: Any) -> Any:
    denoisers = list(known_denoisers(pipe).values())
    if len(denoisers) > 1:
        raise InputError(f"{type(pipe).__name__} has {len(denoisers)} denoisers: autoguidance is for one")
    return bare(denoisers[0])


def _shapes(network: nn.Module) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)}
