"""Weights that are kept as small numbers and their scales. Loaded without the scales they are other weights, so no
model of them is taken; float8 weights that have no scales are only rounded, and are."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.models.headers import Header

_NAMES = {
    "bitsandbytes": r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|\.quant_state\.",
    "nunchaku": r"\.(wscales|wcscales|wzeros|smooth_factor|smooth|proj_down|lora_down_svdq)$",
    "GPTQ or AWQ": r"\.(qweight|qzeros|g_idx)$",
    "quanto": r"\.(_data|_scale|weight_qtype)$",
    "ComfyUI's": r"(^|\.)(scaled_fp8|comfy_quant)$",
    "scaled": r"\.(scale_weight|weight_scale(_2|_inv)?|scale_input|input_scale|scale_inv)$",
}
"""Whose form it is, and how names in it end; asked in this order."""
_METADATA = ("quantization_config", "_quantization_metadata", "quantization")
_ADVICE = "give the model in 16 or 32 bits"


def check_header(header: Header, place: Path | str) -> None:
    """Raise `InputError` for a file of quantised weights. place: the file, for the message."""
    if form := _form(header):
        raise InputError(f"{place} holds quantised weights ({form}): {_ADVICE}")


def check_config(config: Mapping[str, Any], place: Path | str) -> None:
    """The same, by a component's config.json."""
    if found := config.get("quantization_config"):
        method = found.get("quant_method") if isinstance(found, Mapping) else found
        raise InputError(f"{place} is of quantised weights ({method}): {_ADVICE}")


def _form(header: Header) -> str | None:
    for form, pattern in _NAMES.items():
        if (name := _first(header.shapes, pattern)) is not None:
            return f"{form} form, with '{name}'"
    integers = {name: dtype for name, dtype in header.dtypes.items() if dtype.startswith(("I", "U", "F4", "F6"))}
    if (name := _first(integers, r"(^|\.)weight$")) is not None:
        return f"'{name}' is {integers[name]}"
    return next((f"its header has '{key}'" for key in _METADATA if key in header.metadata), None)


def _first(names: Iterable[str], pattern: str) -> str | None:
    return next((name for name in names if re.search(pattern, name)), None)
