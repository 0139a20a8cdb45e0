"""One reader of LoRA files, whoever wrote them: their factors, and what else is in the file, named and counted.

    lora_unet_…to_q.lora_down.weight   .lora_up.weight   .alpha     kohya's trainer, and what follows it
    unet.….to_q.lora_A.weight          .lora_B.weight               PEFT, diffusers, ComfyUI (diffusion_model.…)
    ….processor.to_q_lora.down.weight  .up.weight                   diffusers' first releases; ….to_q.lora.down.weight

A plain LoRA adds s·B·A to a layer's weight, s = α/r (2106.09685). What is none is refused by its name: LoHa, LoKr and
others of LyCORIS (2309.14859), OFT (2306.07280), DoRA (2402.09353), IA³ (2205.05638), whole differences. No model is
needed to read a file; `selfnpo_core.weights.lora_layers` finds its layers in one.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.models.headers import read_header
from selfnpo_core.negative import Factors
from selfnpo_core.system.files import load_tensors, read_json
from selfnpo_core.weights.file_kinds import kind_of

METADATA = "lora_adapter_metadata"
DENOISER, OTHER_TEXT = "denoiser", "other text encoders"
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""What PEFT writes."""

_FACTOR = re.compile(
    r"(?P<stem>.+?)(?:[._]lora(?:_linear_layer)?\.(?P<old>down|up)\.weight"
    r"|\.lora_(?P<new>down|up|A|B)(?:\.[^.]+)?\.weight"
    r"|(?:[._]lora(?:_linear_layer)?)?\.(?P<alpha>alpha))"
)
_ROLE = {"A": "down", "B": "up"}
_OTHERS = {
    r"dora_scale$|lora_magnitude_vector": "a DoRA",
    r"\.hada_": "a LoHa (LyCORIS)",
    r"\.lokr_": "a LoKr (LyCORIS)",
    r"\.(oft|boft)_|\.oft_R\.": "an OFT",
    r"\.on_input$|\.ia3_": "an IA³",
    r"\.diff(_b|_m)?$|\.set_weight$": "a file of whole differences (LyCORIS full, .diff)",
    r"\.lora_mid\.weight$": "a LoCon with a Tucker core (LyCORIS)",
    r"\.[abc][12]\.weight$|\.bm[12]\.weight$": "a GLoRA (LyCORIS)",
    r"\.[wb]_norm$": "a LoRA with norms (LyCORIS)",
    r"\.vera_|vera_[AB]$": "a VeRA",
    r"lora_(B|up)(\.[^.]+)?\.bias$": "a LoRA with biases",
    r"lora_embedding_": "a LoRA of embeddings",
    r"^lora_controlnet$": "a Control-LoRA",
    r"(scale_weight|weight_scale|scaled_fp8)$": "a LoRA in scaled 8 bits",
}
"""Names that no plain LoRA has → what has them."""
_DENOISER = r"(?:base_model\.model\.|unet\.|transformer\.|model\.diffusion_model\.|diffusion_model\.)+"
_DENOISER_FLAT = r"(?:lora|lycoris)_(?:unet|transformer)_|lycoris_"
_TEXT = {
    r"lora_te1?_|te1?\.": "text_encoder",
    r"lora_te2_|te2\.": "text_encoder_2",
    r"lora_te3_|te3\.": "text_encoder_3",
    r"(?:base_model\.model\.)?text_encoder\.": "text_encoder",
    r"(?:base_model\.model\.)?text_encoder_2\.": "text_encoder_2",
    r"(?:base_model\.model\.)?text_encoder_3\.": "text_encoder_3",
    r"text_encoders\.|cond_stage_model\.|conditioner\.|clip_[lg]\.|t5xxl\.": OTHER_TEXT,
}
_BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.")


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A plain LoRA as it is on disk, its factors in the file's own dtype (8-bit floats in float32).

    layers: of the denoiser, by the name that the file gives them, without what stands before and after.
    text: component → the same of text encoders. embeddings: bundled textual inversions. guessed: layers, of all, of
        which the file does not say alpha; it is taken as the rank.
    """

    path: Path
    layers: Mapping[str, Factors]
    text: Mapping[str, Mapping[str, Factors]]
    embeddings: int
    guessed: int
    naming: str
    header: Mapping[str, str]

    @property
    def count(self) -> int:
        """Of layers, text encoders' included."""
        return len(self.layers) + sum(map(len, self.text.values()))

    @property
    def by_path(self) -> bool:
        """Whether its names are a diffusers network's own."""
        return self.naming == "PEFT"

    @cached_property
    def has_effect(self) -> bool:
        """Whether some layer's product is not zero; NaN counts as not zero."""
        return any(f.alpha != 0 and bool(f.up.any()) and bool(f.down.any()) for f in self.layers.values())

    @property
    def made_for(self) -> str:
        """What the header says of the base, or nothing."""
        keys = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name")
        said = next((self.header[key] for key in keys if self.header.get(key)), None)
        return f", which is for {said} by its header" if said else ""

    @property
    def prediction_type(self) -> str | None:
        """What the header says of the base that it was trained on; trainers name two of the types only."""
        said = self.header.get("modelspec.prediction_type", "").lower()
        if said.startswith("v") or self.header.get("ss_v_parameterization") == "True":
            return "v_prediction"
        return "epsilon" if said.startswith("eps") else None

    def left_out(self, taken: frozenset[str] = frozenset()) -> str:
        """In words, what is neither of the denoiser nor of the text encoders that are taken; "" for nothing."""
        parts = [f"{len(layers)} layers of {part}" for part, layers in sorted(self.text.items()) if part not in taken]
        parts += [f"{self.embeddings} bundled embeddings"] if self.embeddings else []
        return " and ".join(parts)


def read_lora(path: Path, tensors: Mapping[str, Tensor] | None = None, *, alphas_in: bool = False) -> LoraFile:
    """A LoRA file. tensors: what is in it, where it was read, or converted, already.

    alphas_in: the tensors say all of alpha (`with_alphas_in`), and no configuration is asked for it. Raises
    `InputError`, with the format's name, for what is no plain LoRA.
    """
    tensors = load_tensors(path) if tensors is None else tensors
    header = dict(read_header(path).metadata)
    _refuse_others(path, tensors)
    parts, bundled = _sorted(path, tensors)
    told = {} if alphas_in else _told(path, header)
    guessed = 0
    found: dict[str, dict[str, Factors]] = {DENOISER: {}}
    for (component, stem), part in parts.items():
        factors, said = _factors(path, stem, part, told.get(component, told.get("", {})))
        found.setdefault(component, {})[stem] = factors
        guessed += not said
    layers = found.pop(DENOISER)
    if not layers:
        what = " and ".join([*(f"{len(t)} layers of {part}" for part, t in found.items())])
        raise InputError(f"{path} changes no layer of a denoiser, but {what}: give a LoRA of a UNet or transformer")
    return LoraFile(
        path=path,
        layers=layers,
        text=found,
        embeddings=len(bundled),
        guessed=guessed,
        naming=_naming(tensors),
        header=header,
    )


def with_alphas_in(file: LoraFile, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, every α/r taken into the second factor, and every alpha that is there made the rank."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        match = None if _BUNDLED.match(name) else _FACTOR.fullmatch(name)
        if match is None:
            continue
        (component, stem), role = _place(match)
        factors = (file.layers if component == DENOISER else file.text[component])[stem]
        scale = factors.alpha / factors.rank
        if role == "up" and scale != 1:
            found[name] = tensor.float() * scale
        elif role == "alpha":
            found[name] = torch.tensor(float(factors.rank))
    return found


def has_factors(names: Iterable[str]) -> bool:
    """Whether some of these names of tensors are a plain LoRA's."""
    return any((match := _FACTOR.fullmatch(name)) and not match["alpha"] for name in names)


def is_adapter(names: Iterable[str]) -> bool:
    """Whether these names of tensors are an adapter's, of whatever kind."""
    every = list(names)
    return has_factors(every) or _other(every) is not None


def _refuse_others(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if found := _other(tensors):
        what, count, first = found
        raise InputError(
            f"{path} is {what} ({count} such tensors, as '{first}'), and only plain LoRAs can be read: make one of it "
            "first (kohya's and LyCORIS's scripts extract one), or merge it into its base"
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not name.endswith(".alpha"):
            raise InputError(f"{path} holds '{name}' in {tensor.dtype}, quantised: give the LoRA in 16 or 32 bits")


def _other(names: Iterable[str]) -> tuple[str, int, str] | None:
    """(what has such names, how many there are, the first)."""
    for pattern, what in _OTHERS.items():
        if some := [name for name in names if re.search(pattern, name)]:
            return what, len(some), some[0]
    return None


def _sorted(
    path: Path, tensors: Mapping[str, Tensor]
) -> tuple[dict[tuple[str, str], dict[str, Tensor]], frozenset[str]]:
    """((component, stem) → role → tensor, names of bundled embeddings)."""
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    names: dict[tuple[tuple[str, str], str], str] = {}
    bundled, unknown = set(), []
    for name, tensor in tensors.items():
        if match := _BUNDLED.match(name):
            bundled.add(match[1])
        elif match := _FACTOR.fullmatch(name):
            layer, role = _place(match)
            if (first := names.setdefault((layer, role), name)) != name:
                raise InputError(
                    f"{path} has the layer '{layer[1]}' twice ('{first}' and '{name}'): give a file of one LoRA"
                )
            parts.setdefault(layer, {})[role] = tensor
        else:
            unknown.append(name)
    if not any("up" in part or "down" in part for part in parts.values()):
        raise InputError(f"{path} {kind_of(tensors)}")
    if unknown:
        raise InputError(
            f"{path} has {len(unknown)} tensors beside its LoRA that are not known ('{unknown[0]}'): make a plain LoRA "
            "of it first"
        )
    return parts, frozenset(bundled)


def _place(match: re.Match[str]) -> tuple[tuple[str, str], str]:
    """(layer, "down", "up" or "alpha") of a tensor's name."""
    role = match["old"] or match["new"] or "alpha"
    return _component(match["stem"]), _ROLE.get(role, role)


def _component(stem: str) -> tuple[str, str]:
    """(component, name in it) of a layer's whole name."""
    for pattern, component in _TEXT.items():
        if match := re.match(pattern, stem):
            return component, stem if component == OTHER_TEXT else stem[match.end() :]
    return DENOISER, re.sub(f"^(?:{_DENOISER}|{_DENOISER_FLAT})", "", stem)


def _factors(path: Path, stem: str, part: Mapping[str, Tensor], told: Mapping[str, Any]) -> tuple[Factors, bool]:
    """(factors, whether the file says alpha)."""
    if "down" not in part or "up" not in part:
        lacks = "second" if "down" in part else "first"
        raise InputError(f"{path} lacks the {lacks} factor of '{stem}': get the whole file again")
    down, up = (_readable(part[role]) for role in ("down", "up"))
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
        shapes = " and ".join(str(tuple(f.shape)) for f in (down, up))
        raise InputError(f"{path} is damaged: the factors of '{stem}' are {shapes}, which do not fit: get it again")
    rank = down.shape[0]
    if "alpha" in part:
        if part["alpha"].numel() != 1:
            raise InputError(f"{path} is damaged: alpha of '{stem}' is no number: get it again")
        return Factors(down=down, up=up, alpha=float(_readable(part["alpha"]))), True
    alpha = _told_alpha(told, stem, rank)
    return Factors(down=down, up=up, alpha=float(rank) if alpha is None else alpha), alpha is not None


def _readable(tensor: Tensor) -> Tensor:
    """8-bit floats can be stored, and nothing else."""
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor


def _told(path: Path, header: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Component ("" for any) → its PEFT configuration: of the header, or of the file that PEFT writes beside."""
    beside = path.with_name(ADAPTER_CONFIG)
    try:
        stored = json.loads(header.get(METADATA, "{}"))
        if not stored and path.name == ADAPTER_FILE and beside.is_file():
            stored = read_json(beside)
        stored = dict(stored)
    except (ValueError, TypeError):
        raise InputError(f"{path} has a configuration that cannot be read: get it again") from None
    found: dict[str, dict[str, Any]] = {}
    for key, value in stored.items():
        component, _, setting = key.rpartition(".")
        found.setdefault(DENOISER if component in ("unet", "transformer") else component, {})[setting] = value
    if any(config.get("use_dora") for config in found.values()):
        raise InputError(f"{path} is a DoRA by its configuration, and only plain LoRAs can be read: merge it first")
    return found


def _told_alpha(told: Mapping[str, Any], stem: str, rank: int) -> float | None:
    """PEFT's own rule: the first pattern that matches the end, else the adapter's alpha. With rsLoRA's √r (2312.03732):
    Factors' scale is α/r."""
    from peft.utils.other import get_pattern_key

    patterns = told.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), stem), told.get("lora_alpha"))
    if not isinstance(alpha, int | float):
        return None
    return float(alpha) * math.sqrt(rank) if told.get("use_rslora") else float(alpha)


def _naming(tensors: Mapping[str, Any]) -> str:
    """Of the denoiser's layers; "PEFT" where each is a path."""
    if any(re.match(_DENOISER_FLAT, name) for name in tensors):
        return "kohya"
    if any(re.search(r"[._]lora\.(down|up)\.weight$", name) for name in tensors):
        return "diffusers"
    if any(re.search(r"(input_blocks|middle_block|output_blocks)\.", name) for name in tensors):
        return "ComfyUI"
    return "PEFT"
