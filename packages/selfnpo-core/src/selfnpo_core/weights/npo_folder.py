"""The result of a run: negative weights that say what they are and which base they belong to.

npo/pytorch_lora_weights.safetensors   a LoRA, loaded by any stock diffusers pipeline
npo/delta.safetensors                  or, of all weights, the differences to the base in bf16
npo/npo_config.json                    `NpoConfig`
npo/README.md                          a model card
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.models.identity import SAME_BASE, distance, fingerprint, weights_hash
from selfnpo_core.system.files import (
    PICKLES,
    load_tensors,
    read_json,
    same_tensors,
    write_json,
    write_text,
    written_aside,
)
from selfnpo_core.system.paths import user_path
from selfnpo_core.weights.lora_file import ADAPTER_FILE, LoraFile, has_factors, read_lora
from selfnpo_core.weights.model_card import model_card
from selfnpo_core.weights.npo_rule import Finite, NpoRule

log = logging.getLogger(__name__)
LORA_FILE, DELTA_FILE, CONFIG_FILE = "pytorch_lora_weights.safetensors", "delta.safetensors", "npo_config.json"


class Recommended(BaseModel):
    """How negative weights are best used: θ + α·η + β·δ, a range of guidance scales, and a rule of guidance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: Finite = 1.0
    alpha: Finite = 1.0
    guidance_scale: tuple[Finite, Finite] = (3.0, 8.0)
    rule: NpoRule = NpoRule()


class NpoConfig(BaseModel):
    """npo_config.json."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    version: Literal[1] = Field(1, alias="schema")
    family: str
    base_model: str
    base_hash: str
    base_fingerprint: tuple[float, ...] = ()
    train: Literal["lora", "full"]
    rank: int | None
    recipe: dict[str, Any]
    recommended: Recommended = Recommended()
    negative_condition: Literal["null", "prompt"] = "null"
    null_prompt: str | None = None
    """What the null branch was given in training; `None` is what the family's own pipeline gives it."""
    versions: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class Npo:
    """Negative weights as read from disk; `config` is `None` for a bare LoRA file from elsewhere."""

    path: Path
    kind: Literal["lora", "delta"]
    tensors: Mapping[str, Tensor]
    config: NpoConfig | None
    lora: LoraFile | None = None
    """What the tensors of a LoRA are."""

    @property
    def has_effect(self) -> bool:
        return _acts(self.tensors) if self.lora is None else self.lora.has_effect


def load_npo(path: str | Path, *, require_effect: bool = True) -> Npo:
    """From a run folder, its npo folder, or a weights file. One-line `InputError`s for all that can be wrong."""
    file = find_npo_file(path)
    tensors = load_tensors(file)
    config_file = file.parent / CONFIG_FILE
    config = read_config(config_file) if config_file.is_file() else None
    ours = file.name == DELTA_FILE or (config is not None and config.train == "full")
    is_delta = ours and not has_factors(tensors)
    if is_delta and config is None:
        raise InputError(f"{file} has no {CONFIG_FILE} beside it, so its base is unknown: copy that file too")
    lora = None if is_delta else read_lora(file, tensors)
    if config is None:
        log.warning("%s has no %s: cannot tell which base it was made for", file, CONFIG_FILE)
    npo = Npo(path=file, kind="delta" if is_delta else "lora", tensors=tensors, config=config, lora=lora)
    if require_effect and not npo.has_effect:
        what = "train longer or hotter" if config else "its layers' products are zero, so give another"
        raise InputError(f"{file} has no effect, all its changes are zero: {what}")
    return npo


def find_npo_file(path: str | Path) -> Path:
    """The weights file that RUN, RUN/npo or a file stands for."""
    path = user_path(path)
    if path.suffix in PICKLES:
        raise InputError(f"{path} is a pickle, which can run code when loaded: convert it to .safetensors")
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise InputError(f"{path} is no .safetensors file: give a run folder or its weights file")
        return path
    if not path.exists():
        raise InputError(f"{path} does not exist: give a run folder, its npo folder, or a .safetensors file")
    for folder in (path, path / "npo"):
        found = [folder / name for name in (LORA_FILE, DELTA_FILE, ADAPTER_FILE) if (folder / name).is_file()]
        if found:
            return found[0]
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise InputError(f"{path / pickles[0]} is a pickle, which can run code: convert it to .safetensors")
    raise InputError(f"{path} holds no negative weights ({LORA_FILE} or {DELTA_FILE}): has its run finished?")


def check_base(npo: Npo, base: nn.Module | str, name: str, *, family: str | None = None) -> None:
    """Raise `InputError` unless these weights were made for `base`, a network or its hash, known as `name`.

    The same weights in another dtype are the same base: their fingerprints lie within rounding of each other.
    """
    config = npo.config
    if config is None:
        return
    made_for = f"{npo.path} was made for {config.family} base {config.base_model} ({config.base_hash[:12]})"
    if family is not None and family != config.family:
        raise InputError(f"{made_for}, not for a {family} model: load the base it was made for")
    apart = None
    if isinstance(base, nn.Module):
        if config.base_fingerprint:
            apart = distance(list(config.base_fingerprint), fingerprint(base))
            if apart < SAME_BASE:
                return
        base = weights_hash(base)
    if base != config.base_hash:
        far = "" if apart is None else f", whose weights differ by about {apart:.1%}"
        raise InputError(f"{made_for}, not for {name} ({base[:12]}){far}: load that base, or train on this one")


def write_npo(
    folder: Path,
    config: NpoConfig,
    save_weights: Callable[[Path], None],
    expected: Mapping[str, Tensor],
) -> Path:
    """Write a whole npo folder, or leave the one that is there. What reads back must be what was meant.

    `expected` are the trained tensors by the names in the file (a LoRA's without the network's prefix).
    """
    if empty := [name for name, tensor in expected.items() if not tensor.numel()]:
        raise RunError(f"{empty[0]} is empty: its pieces were not gathered from all processes, so nothing is written")
    with written_aside(folder) as aside:
        save_weights(aside)
        file = find_npo_file(aside)
        written = load_tensors(file)
        if file.name == LORA_FILE:
            written = {key.partition(".")[2]: tensor for key, tensor in written.items()}
        if not same_tensors(written, {k: v.detach() for k, v in expected.items()}):
            raise RunError(f"{file.name} does not read back as it was trained: the base model cannot be saved so")
        write_json(aside / CONFIG_FILE, config.model_dump(mode="json", by_alias=True))
        write_text(aside / "README.md", model_card(config.model_dump(mode="json", by_alias=True)))
        if not (read_lora(file).has_effect if file.name == LORA_FILE else _acts(written)):
            log.warning("%s has no effect: nothing has changed in training", folder)
    return folder


def read_config(path: Path) -> NpoConfig:
    try:
        return NpoConfig.model_validate(read_json(path))
    except (ValidationError, ValueError, OSError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{path} is damaged or of another version: copy it again ({detail})") from None


def _acts(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any element of an offset is not zero."""
    return any(bool(tensor.float().any()) for tensor in tensors.values())
