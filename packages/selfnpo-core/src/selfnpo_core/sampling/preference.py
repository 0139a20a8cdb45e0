"""Models tuned to people's preferences, η: both sides of the guidance run at θ + η, the negative one at θ + α·η + β·δ.

η is a LoRA (as SPO's), or the difference between a whole tuned denoiser (Diffusion-DPO, or any fine-tune of θ) and θ.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from selfnpo_core.adapters.attach import ETA, load_lora
from selfnpo_core.errors import InputError
from selfnpo_core.models.hub import files_of
from selfnpo_core.models.loading import one_line_errors, quiet
from selfnpo_core.models.sources import Source
from selfnpo_core.sampling.options import Negative
from selfnpo_core.system.files import file_sha256
from selfnpo_core.system.paths import user_path
from selfnpo_core.weights.npo_folder import LORA_FILE


@dataclass(frozen=True, kw_only=True)
class Preference:
    """η by the name that its user gave it: a LoRA's file, or what loads the tuned denoiser."""

    name: str
    lora: Path | None = None
    denoiser: Callable[[], nn.Module] | None = None

    @torch.no_grad()
    def apply(self, pipe: Any, component: str, *, keep: bool) -> dict[str, Tensor] | None:
        """Bring the pipeline to θ + η: a LoRA is loaded as the active adapter "eta", whole weights take θ's place.

        keep: return η of whole weights (parameter → difference, in the weights' dtype), for a negative side with α ≠ 1.
        Raises `InputError` for weights of another architecture.
        """
        if self.lora is not None:
            load_lora(pipe, self.lora, ETA)
            return None
        assert self.denoiser is not None
        network: nn.Module = getattr(pipe, component)
        tuned = dict(self.denoiser().named_parameters())
        own = dict(network.named_parameters())
        _check_same(self.name, {n: p.shape for n, p in tuned.items()}, {n: p.shape for n, p in own.items()})
        eta: dict[str, Tensor] = {}
        for name, parameter in own.items():
            new = tuned.pop(name).to(parameter.device)
            if keep:
                difference = new.float() - parameter.float()
                if bool(difference.any()):
                    eta[name] = difference.to(parameter.dtype)
            parameter.copy_(new)
        return eta if keep else None


def find(
    name: str,
    *,
    network: type[nn.Module],
    component: str,
    locate: Callable[[str], Source],
    whole: Callable[[Source], nn.Module],
) -> Preference:
    """What `--preference NAME` stands for; no weights are read, but what is on the hub is fetched.

    name: a LoRA file, or a folder with one; a folder with a denoiser (config.json), or with one under `component`; or
        whatever `--model` could be, of which `whole` loads the denoiser. locate: what `--model NAME` stands for.
    """
    source = locate(name)
    if source.kind == "hub":
        return _on_hub(name, source, network, component, whole)
    path = Path(source.location)
    if path.is_file() and path.suffix == ".safetensors":
        if _is_lora(path):
            return Preference(name=name, lora=path)
        return Preference(name=name, denoiser=partial(whole, source))
    if path.is_dir():
        for folder in (path, path / "npo"):
            if (folder / LORA_FILE).is_file():
                return Preference(name=name, lora=folder / LORA_FILE)
        if not (path / "model_index.json").is_file():
            for folder in (path, path / component):
                if (folder / "config.json").is_file():
                    return Preference(name=name, denoiser=partial(_load, network, folder, name))
            raise InputError(
                f"preference {name} holds neither a LoRA ({LORA_FILE}) nor a {component} (config.json): give one"
            )
    return Preference(name=name, denoiser=partial(whole, source))


def _on_hub(
    name: str, source: Source, network: type[nn.Module], component: str, whole: Callable[[Source], nn.Module]
) -> Preference:
    """A repository with a whole model, a denoiser, or a LoRA alone."""
    from huggingface_hub import hf_hub_download, snapshot_download

    with quiet(), one_line_errors(source):
        files = files_of(source.location)
        if "model_index.json" in files:
            return Preference(name=name, denoiser=partial(whole, source))
        for folder in (f"{component}/", ""):
            if f"{folder}config.json" in files:
                patterns = [f"{folder}*.json", f"{folder}*.safetensors"]
                place = Path(snapshot_download(source.location, allow_patterns=patterns)) / folder
                return Preference(name=name, denoiser=partial(_load, network, place, name))
        loras = [file for file in files if file.endswith(".safetensors") and "/" not in file]
        if len(loras) == 1:
            return Preference(name=name, lora=Path(hf_hub_download(source.location, loras[0])))
    raise InputError(
        f"preference {name} on the hub is neither a model, nor a {component}, nor one LoRA: give a file of it"
    )


class TunedJob(Protocol):
    """What `with_preference` asks of a family's job."""

    @property
    def preference(self) -> str | None: ...

    @property
    def negative(self) -> Negative | None: ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A pipeline at θ + η. eta: η of whole weights, for `Negative.attach`, where α asks for it."""

    pipe: Any
    eta: Mapping[str, Tensor] | None = None


def with_preference(pipe: Any, component: str, job: TunedJob, find_it: Callable[[str], Preference]) -> Prepared:
    """The loaded pipeline with the job's preference in it, its base checked before.

    find_it: a name → the preference.
    """
    if job.negative is not None:
        job.negative.check_base(getattr(pipe, component), pipe.name_or_path)
    if job.preference is None:
        return Prepared(pipe=pipe)
    keep = job.negative is not None and job.negative.alpha != 1.0
    return Prepared(pipe=pipe, eta=find_it(job.preference).apply(pipe, component, keep=keep))


def record(name: str | None) -> dict[str, str | None]:
    """What metadata.jsonl says of a preference; of a file, its hash too."""
    path = None if name is None else user_path(name)
    return {"preference": name, "preference_sha256": file_sha256(path) if path is not None and path.is_file() else None}


def _load(network: Any, folder: Path, name: str) -> nn.Module:
    config = network.load_config(folder)
    if config.get("_class_name", network.__name__) != network.__name__:
        raise InputError(f"preference {name} is a {config['_class_name']}, and the model has a {network.__name__}")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"preference {name} has no safetensors weights: get it as safetensors")
    try:
        loaded: nn.Module = network.from_pretrained(folder, use_safetensors=True)
        return loaded
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"preference {name} cannot be loaded ({detail}): get it again") from None


def _is_lora(path: Path) -> bool:
    try:
        with safe_open(str(path), framework="pt") as file:
            return any("lora" in name for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{path} is not a whole safetensors file ({detail}): make or copy it again") from None


def _check_same(name: str, tuned: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for key in own.keys() | tuned.keys():
        if tuned.get(key) != own.get(key):
            what, has = (tuple(shapes[key]) if key in shapes else "missing" for shapes in (tuned, own))
            raise InputError(
                f"preference {name} is of another architecture than the model ('{key}' is {what}, but {has} in the "
                "model): give one that was tuned from it"
            )
