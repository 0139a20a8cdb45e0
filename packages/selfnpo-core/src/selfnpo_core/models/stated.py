"""What a checkpoint says of itself: how it is parametrised, and whether its noise ends at zero signal.

Single files say so by empty tensors that are called `v_pred` and `ztsnr` (2305.08891), or in their header, a diffusers
folder in its scheduler's configuration. The EDM parametrisation (2206.00364) is not supported, whoever says it.
"""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.models.headers import Header

log = logging.getLogger(__name__)
_WORDS = {
    "epsilon": ("epsilon", "eps", "noise"),
    "v_prediction": ("v_prediction", "v", "v_pred", "vpred", "velocity"),
    "sample": ("sample", "x0", "x_0"),
    "flow": ("flow", "flow_prediction", "rectified_flow", "flow_matching"),
}
_KEYS = ("modelspec.prediction_type", "prediction_type")
_EDM = ("edm_mean", "edm_std", "edm_vpred.")


@dataclass(frozen=True, kw_only=True)
class Stated:
    """prediction: as diffusers calls it, `None` where nothing is said."""

    prediction: str | None = None
    zero_snr: bool = False


def stated_in(header: Header, name: str) -> Stated:
    """By a checkpoint's header. Raises `InputError` for EDM and for one that contradicts itself. name: for messages."""
    if any(key.startswith(_EDM) for key in header.shapes):
        raise edm(name)
    said = {word for key in _KEYS if (word := header.metadata.get(key)) is not None}
    found = {_prediction(word, name) for word in said}
    if str(header.metadata.get("ss_v_parameterization")).lower() == "true" or "v_pred" in header.shapes:
        found.add("v_prediction")
    if len(found) > 1:
        raise InputError(
            f"{name} says of itself both {' and '.join(sorted(found))} (tensor 'v_pred', header {', '.join(_KEYS)}): "
            "save it with the one that is true"
        )
    zero_snr = "ztsnr" in header.shapes or str(header.metadata.get("ss_zero_terminal_snr")).lower() == "true"
    return Stated(prediction=next(iter(found), None), zero_snr=zero_snr)


def check_agree(stated: Stated, scheduler: Mapping[str, Any], file: str, place: str) -> None:
    """Raise `InputError` if weights say otherwise than their folder's scheduler. place: of its configuration."""
    own = _own(scheduler)
    if stated.prediction not in (None, own):
        raise InputError(f"{file} says of itself {stated.prediction}, but {place} says {own}: correct prediction_type")
    if stated.zero_snr and not scheduler.get("rescale_betas_zero_snr"):
        raise InputError(f"{file} is marked ztsnr, but {place} is not: set rescale_betas_zero_snr there to true")


def settled(scheduler: Any, name: str, stated: Stated | None = None, *, say: bool = False) -> Any:
    """The scheduler as the checkpoint wants it: the same one, or one that differs in what was stated.

    With zero terminal SNR it begins at the last timestep, which alone has that noise. say: warn of what differs.
    Raises `InputError` for EDM, and for zero SNR where epsilon is predicted, which says nothing of the data there.
    """
    if type(scheduler).__name__.startswith("EDM"):
        raise edm(name)
    config: Mapping[str, Any] = scheduler.config
    changes: dict[str, Any] = {}
    own, spacing = _own(config), config.get("timestep_spacing", "leading")
    if stated is not None and stated.prediction is not None and stated.prediction != own:
        changes["prediction_type"] = own = stated.prediction
    marked = stated is not None and stated.zero_snr
    if marked or config.get("rescale_betas_zero_snr"):
        if own == "epsilon":
            raise InputError(
                f"model {name} is one of zero terminal SNR that predicts epsilon, which cannot be: mark it v_pred, or "
                "give a folder whose scheduler says v_prediction"
            )
        if spacing == "leading" or (marked and spacing != "trailing"):
            changes["timestep_spacing"] = "trailing"
        if not config.get("rescale_betas_zero_snr"):
            changes["rescale_betas_zero_snr"] = True
    made = _class(scheduler, config.get("rescale_betas_zero_snr") or "rescale_betas_zero_snr" in changes)
    if not changes and made is type(scheduler):
        return scheduler
    if say:
        words = ", ".join(f"{key} {value}" for key, value in changes.items())
        log.warning("model %s is taken as it says of itself: %s", name, words)
    if made is not type(scheduler):
        changes["clip_sample"] = False  # on by default, and wrong for latents
    return made.from_config(config, **changes)


def edm(name: str) -> InputError:
    return InputError(
        f"model {name} is parametrised as EDM, which is not supported: give one that predicts epsilon, v or flow"
    )


def _own(scheduler: Mapping[str, Any]) -> str:
    """What a scheduler's configuration says is predicted."""
    flow = scheduler.get("use_flow_sigmas") or "FlowMatch" in str(scheduler.get("_class_name"))
    return "flow" if flow else str(scheduler.get("prediction_type") or "epsilon")


def _prediction(word: str, name: str) -> str:
    plain = word.strip().lower().replace("-", "_")
    for prediction, words in _WORDS.items():
        if plain in words:
            return prediction
    if plain.startswith("edm"):
        raise edm(name)
    raise InputError(
        f"model {name} says of itself that it predicts '{word}', which is not supported: give one that predicts "
        "epsilon or v"
    )


def _class(scheduler: Any, zero_snr: bool) -> Any:
    """Its own class, or DDIM if that knows no zero SNR (PNDM's)."""
    if not zero_snr or "rescale_betas_zero_snr" in inspect.signature(type(scheduler).__init__).parameters:
        return type(scheduler)
    from diffusers import DDIMScheduler

    return DDIMScheduler
